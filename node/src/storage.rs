//! A node's durable storage: keys and values that outlive a crash. It knows
//! neither files nor the program that fills it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorCode};
use crate::json::Json;

/// Keys and values that outlive a crash of the node. Clones are handles to the
/// same storage.
///
/// Maelstrom has no storage and kills no nodes: there the storage lives in
/// the process, and ends with it. The simulation keeps the storage of a node
/// that crashes and passes it to the node's next incarnation; state, timers
/// and open calls are lost. Every change is durable when the method returns,
/// so a program stores first and sends its reply afterwards. A crash always
/// falls between two polls of a task: the changes between two `.await`s are
/// stored together.
///
/// ```
/// # use hark_node::{Node, Request};
/// # use serde::Deserialize;
/// #[derive(Deserialize)]
/// struct Add {
///     element: i64,
/// }
///
/// fn program(node: &Node<Vec<i64>>) {
///     node.on_init(async |node: Node<Vec<i64>>| {
///         if let Ok(elements) = node.storage().scan("element/") {
///             node.state().extend(elements.into_iter().map(|(_, element): (String, i64)| element));
///         }
///     });
///     node.handle("add", async |node: Node<Vec<i64>>, request: Request<Add>| {
///         let element = request.body.element;
///         node.storage().put(&format!("element/{element}"), &element)?;
///         node.state().push(element);
///         Ok(())
///     });
/// }
/// ```
#[derive(Clone, Default)]
pub struct Storage {
    entries: Rc<RefCell<BTreeMap<String, Json>>>,
}

impl Storage {
    /// Returns the value of a key, or `None` if there is none.
    ///
    /// # Errors
    /// 13 if the value is not a `T`.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        self.entries
            .borrow()
            .get(key)
            .map(|value| parse(key, value))
            .transpose()
    }

    /// Stores a value.
    ///
    /// # Errors
    /// 13 if the value cannot be represented in JSON. The former value stays.
    pub fn put(&self, key: &str, value: &impl Serialize) -> Result<(), Error> {
        let value = Json::of(value).map_err(|error| crash(key, &error))?;
        self.entries.borrow_mut().insert(key.to_owned(), value);
        Ok(())
    }

    /// Removes a key, if it is there.
    pub fn remove(&self, key: &str) {
        self.entries.borrow_mut().remove(key);
    }

    /// Returns all keys that begin with `prefix`, in their order, with their
    /// values. Numbers in keys need leading zeros to be in numerical order.
    ///
    /// # Errors
    /// 13 if a value is not a `T`.
    pub fn scan<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>, Error> {
        let entries = self.entries.borrow();
        let found = entries
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix));
        found
            .map(|(key, value)| Ok((key.clone(), parse(key, value)?)))
            .collect()
    }

    /// Removes everything, as if the node had a new disk.
    pub fn clear(&self) {
        self.entries.borrow_mut().clear();
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage")
            .field("keys", &self.entries.borrow().len())
            .finish()
    }
}

fn parse<T: DeserializeOwned>(key: &str, value: &Json) -> Result<T, Error> {
    value.parse().map_err(|error| crash(key, &error))
}

fn crash(key: &str, error: &serde_json::Error) -> Error {
    Error::new(
        ErrorCode::Crash,
        format!("the stored value of {key} is unusable: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_scanned_in_their_order() {
        let storage = Storage::default();
        for (key, value) in [("b/2", 2), ("a", 0), ("b/1", 1), ("c", 3)] {
            storage.put(key, &value).unwrap();
        }
        assert_eq!(
            storage.scan("b/"),
            Ok(vec![("b/1".to_owned(), 1), ("b/2".to_owned(), 2)])
        );
        storage.remove("b/1");
        assert_eq!(storage.get::<u8>("b/1"), Ok(None));
        assert_eq!(storage.clone().get::<u8>("b/2"), Ok(Some(2)));
        storage.clear();
        assert_eq!(storage.scan::<u8>(""), Ok(vec![]));
    }

    #[test]
    fn values_of_another_type_are_an_error() {
        let storage = Storage::default();
        storage.put("key", &"text").unwrap();
        assert_eq!(storage.get::<u8>("key").unwrap_err().code, ErrorCode::Crash);
        assert_eq!(storage.scan::<u8>("k").unwrap_err().code, ErrorCode::Crash);
        let unwritable = BTreeMap::from([(vec![1], 1)]);
        assert_eq!(
            storage.put("key", &unwritable).unwrap_err().code,
            ErrorCode::Crash
        );
        assert_eq!(storage.get("key"), Ok(Some("text".to_owned())));
    }
}
