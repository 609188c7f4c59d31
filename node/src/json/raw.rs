//! Reads a raw value from a buffer of serde.
//!
//! serde_json passes the text of a raw value through a newtype struct of a
//! secret name. A buffer does not know that name: it passes its content as a
//! newtype struct. The wrapper here turns the content to text and passes it on
//! under the name, so that serde_json takes it for its own.

use std::fmt;

use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IntoDeserializer as _, MapAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::buffered::Text;

/// A deserializer that may be a buffer of serde.
pub(super) struct Buffered<D>(pub(super) D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Buffered<D> {
    type Error = D::Error;

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0
            .deserialize_newtype_struct(name, RawVisitor { name, visitor })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// The visitor of serde_json, and the name that it waits for.
struct RawVisitor<V> {
    name: &'static str,
    visitor: V,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for RawVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    /// serde_json itself.
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(map)
    }

    /// A buffer.
    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<V::Value, D::Error> {
        let mut text = Vec::new();
        Text(&mut text).deserialize(deserializer)?;
        let text = String::from_utf8(text).map_err(D::Error::custom)?;
        self.visitor.visit_map(Entry {
            name: Some(self.name),
            text,
            error: std::marker::PhantomData,
        })
    }
}

/// A map of one entry: the text under the name.
struct Entry<E> {
    name: Option<&'static str>,
    text: String,
    error: std::marker::PhantomData<E>,
}

impl<'de, E: serde::de::Error> MapAccess<'de> for Entry<E> {
    type Error = E;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, E> {
        self.name
            .take()
            .map(|name| seed.deserialize(StrDeserializer::new(name)))
            .transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, E> {
        let text: StringDeserializer<E> = std::mem::take(&mut self.text).into_deserializer();
        seed.deserialize(text)
    }
}
