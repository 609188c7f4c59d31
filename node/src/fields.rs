//! The fields of a body as a program's type. A body is always an object, so a
//! type without fields (`()`, `struct Read;`) is read from any object.

use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::de::StrRead;

/// Reads the fields of type `T` from a body and ignores all others.
///
/// # Errors
/// The error of serde if the body has another form.
pub(crate) fn parse<T: DeserializeOwned>(body: &str) -> serde_json::Result<T> {
    let mut json = serde_json::Deserializer::from_str(body);
    let fields = T::deserialize(Fields(&mut json))?;
    json.end()?;
    Ok(fields)
}

type Json<'de> = serde_json::Deserializer<StrRead<'de>>;

/// Reads an object as a unit if the type asks for a unit.
struct Fields<'a, 'de>(&'a mut Json<'de>);

impl<'de> Deserializer<'de> for Fields<'_, 'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        IgnoredAny::deserialize(self.0)?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_some(self)
    }

    /// serde_json recognizes its own raw values here.
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_struct(name, fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.0.deserialize_ignored_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string
        bytes byte_buf seq tuple tuple_struct map identifier
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    const BODY: &str = r#"{"type": "read", "msg_id": 1, "key": 7}"#;

    #[test]
    fn a_type_without_fields_is_read_from_any_object() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Read;
        assert_eq!(parse::<Read>(BODY).unwrap(), Read);
        parse::<()>(BODY).unwrap();
        assert_eq!(parse::<Option<()>>(BODY).unwrap(), Some(()));
    }

    #[test]
    fn fields_are_read_by_name() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Key {
            key: u8,
        }
        assert_eq!(parse::<Key>(BODY).unwrap(), Key { key: 7 });
        assert!(parse::<(u8, u8)>(BODY).is_err());
        assert!(parse::<()>("{} {}").is_err());
    }

    #[test]
    fn the_type_of_a_body_selects_the_variant_of_an_enum() {
        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(tag = "type", rename_all = "snake_case")]
        enum Command {
            Read { key: crate::Json },
        }
        let Command::Read { key } = parse(BODY).unwrap();
        assert_eq!(key.text(), "7");
    }
}
