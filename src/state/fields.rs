//! Telling a record's own fields from those of other versions.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{Error as NothingRead, MapAccessDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Map, Value};

/// The names of the fields that `T` is read from: what its `Deserialize` asks for.
pub fn own_fields<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut asked: &'static [&'static str] = &[];
    let _ = T::deserialize(Question(&mut asked));
    asked
}

/// Has nothing to read from, and takes down the fields it is asked for.
struct Question<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Question<'_> {
    type Error = NothingRead;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NothingRead> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NothingRead> {
        Err(NothingRead::custom("there is nothing to read from"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// A record, and the fields beside its own.
pub(super) struct WithUnknown<T>(pub T, pub Map<String, Value>);

impl<'de, T: DeserializeOwned> Deserialize<'de> for WithUnknown<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A map, not a struct: serde would take a list for a struct too, field by field.
        deserializer.deserialize_map(WholeRecord(PhantomData))
    }
}

struct WholeRecord<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for WholeRecord<T> {
    type Value = WithUnknown<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, all: A) -> Result<WithUnknown<T>, A::Error> {
        let mut unknown = Map::new();
        let own = OwnFields { all, own: own_fields::<T>(), unknown: &mut unknown };
        let record = T::deserialize(MapAccessDeserializer::new(own))?;
        Ok(WithUnknown(record, unknown))
    }
}

/// Hands on the fields in `own`, and puts the others into `unknown`.
struct OwnFields<'a, A> {
    all: A,
    own: &'static [&'static str],
    unknown: &'a mut Map<String, Value>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for OwnFields<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(FieldName(name)) = self.all.next_key()? {
            if self.own.contains(&&*name) {
                return seed.deserialize(name.into_deserializer()).map(Some);
            }
            self.unknown.insert(name.into_owned(), self.all.next_value()?);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.all.next_value_seed(seed)
    }
}

/// A name that is copied only where it is escaped.
#[derive(Deserialize)]
struct FieldName<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Handles, OrphanState};

    #[test]
    fn a_record_tells_its_own_fields() {
        assert_eq!(own_fields::<OrphanState>(), ["version", "seen"]);
        let own = own_fields::<Handles>();
        assert!(own.contains(&"blocked") && !own.contains(&"extra"), "{own:?}");
    }
}
