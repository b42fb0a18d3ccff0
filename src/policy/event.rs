//! The one shape of an event, whoever tells of it.
//!
//! One line of `events.jsonl` is one [`Event`] as JSON. Rooms tell of what happened through an [`EventSink`];
//! the daemon numbers and writes the lines.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

/// Something that happened. The sequence number and the time are added where it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened, for example `policy.decision`, `source.ready`, `run.start`.
    pub kind: &'static str,
    /// The source it concerns.
    pub source: Option<String>,
    /// The run it concerns (run id).
    pub run: Option<String>,
    /// Further fields, by kind. Never holds a secret.
    pub data: Map<String, Value>,
}

impl Event {
    /// An event that concerns a source.
    pub fn of_source(kind: &'static str, source: &str) -> Self {
        Self { kind, source: Some(source.to_owned()), run: None, data: Map::new() }
    }

    /// An event that concerns a run.
    pub fn of_run(kind: &'static str, run: &str) -> Self {
        Self { kind, source: None, run: Some(run.to_owned()), data: Map::new() }
    }

    /// Adds a field.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.data.insert(key.to_owned(), value.into());
        self
    }
}

/// Where events go. Cheap to clone; telling never blocks on anything but memory.
#[derive(Clone)]
pub struct EventSink(Arc<dyn Fn(Event) + Send + Sync>);

impl EventSink {
    /// A sink that hands each event to `f`.
    pub fn new(f: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    /// A sink that forgets.
    pub fn none() -> Self {
        Self::new(|_| {})
    }

    /// Tells of an event.
    pub fn tell(&self, event: Event) {
        (self.0)(event);
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSink")
    }
}
