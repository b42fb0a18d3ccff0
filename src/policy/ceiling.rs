//! Resource hints against ceilings.
//!
//! A manifest's `resources` are hints: what exceeds a ceiling is cut to it and the cut is a finding. What a caller
//! asks for explicitly is never silently less: above a ceiling it is refused (`E_IMAGE_POLICY`).

use std::time::Duration;

use super::addon::Resources;
use super::code::{Code, Denied};
use super::{duration, quantity};

impl Resources {
    /// The smaller of hint and ceiling for each resource (a missing hint becomes the ceiling), and one sentence
    /// for each hint that was cut.
    pub fn clamped(self, ceiling: Self) -> (Self, Vec<String>) {
        let findings =
            self.excesses(ceiling).into_iter().map(|excess| format!("{excess}: clamped")).collect();
        let effective = Self {
            cpu_millis: smaller(self.cpu_millis, ceiling.cpu_millis),
            memory_bytes: smaller(self.memory_bytes, ceiling.memory_bytes),
            timeout: smaller(self.timeout, ceiling.timeout),
        };
        (effective, findings)
    }

    /// What is said here, and what is not said from `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.or(other.cpu_millis),
            memory_bytes: self.memory_bytes.or(other.memory_bytes),
            timeout: self.timeout.or(other.timeout),
        }
    }

    /// Reads a request: `cpu=0.5,memory=512Mi,timeout=10m`, each at most once, in any order.
    pub fn parse_request(text: &str) -> Result<Self, LimitsError> {
        let mut asked = Self::default();
        for item in text.split(',') {
            let (name, value) = item.split_once('=').ok_or_else(|| LimitsError::Form(item.to_owned()))?;
            asked.ask(name.trim(), value.trim())?;
        }
        Ok(asked)
    }

    /// Asks for one limit, by its name in a manifest's `resources`.
    pub fn ask(&mut self, name: &str, value: &str) -> Result<(), LimitsError> {
        let before = match name {
            "cpu" => self.cpu_millis.replace(quantity::parse_cpu(value)?).is_some(),
            "memory" => self.memory_bytes.replace(quantity::parse_memory(value)?).is_some(),
            "timeout" => {
                let timeout = duration::parse(value)?;
                if timeout < Duration::from_millis(1) {
                    return Err(LimitsError::NoTime(value.to_owned()));
                }
                self.timeout.replace(timeout).is_some()
            }
            other => return Err(LimitsError::Unknown(other.chars().take(40).collect())),
        };
        if before { Err(LimitsError::Twice(name.to_owned())) } else { Ok(()) }
    }

    /// Refuses an explicit request above a ceiling.
    pub fn within(self, ceiling: Self) -> Result<Self, Denied> {
        match self.excesses(ceiling) {
            excesses if excesses.is_empty() => Ok(self),
            excesses => Err(Denied::new(Code::ImagePolicy, excesses.join("; "))),
        }
    }

    fn excesses(self, ceiling: Self) -> Vec<String> {
        let excess = |what: &str, asked: String, most: String| {
            format!("requested {what} {asked} exceeds ceiling {most}")
        };
        let cpu = above(self.cpu_millis, ceiling.cpu_millis)
            .map(|(asked, most)| excess("cpu", quantity::render_cpu(asked), quantity::render_cpu(most)));
        let memory = above(self.memory_bytes, ceiling.memory_bytes).map(|(asked, most)| {
            excess("memory", quantity::render_memory(asked), quantity::render_memory(most))
        });
        let timeout = above(self.timeout, ceiling.timeout).map(|(asked, most): (Duration, _)| {
            excess("timeout", duration::render(asked), duration::render(most))
        });
        [cpu, memory, timeout].into_iter().flatten().collect()
    }
}

/// Why a request for limits is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// Not `name=value`.
    #[error("{0:?} is not a limit: write cpu=0.5,memory=512Mi,timeout=10m")]
    Form(String),
    /// No such limit.
    #[error("there is no limit {0:?}: there are cpu, memory and timeout")]
    Unknown(String),
    /// Said twice.
    #[error("the limit {0} is said twice")]
    Twice(String),
    /// A job with no time.
    #[error("the timeout {0:?} leaves no time to run: a millisecond is the least")]
    NoTime(String),
    /// Not an amount.
    #[error(transparent)]
    Quantity(#[from] quantity::QuantityError),
    /// Not a duration.
    #[error(transparent)]
    Duration(#[from] duration::DurationError),
}

fn smaller<T: Ord>(hint: Option<T>, ceiling: Option<T>) -> Option<T> {
    match (hint, ceiling) {
        (Some(hint), Some(ceiling)) => Some(hint.min(ceiling)),
        (hint, ceiling) => hint.or(ceiling),
    }
}

fn above<T: Ord>(asked: Option<T>, most: Option<T>) -> Option<(T, T)> {
    asked.zip(most).filter(|(asked, most)| asked > most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases RP-04 and RP-05, with their decision: only an explicit request is refused.
    #[test]
    fn requests_are_read_whole_or_refused() {
        let asked = Resources::parse_request("cpu=0.5,timeout=90s, memory = 1Gi").unwrap();
        let expected = Resources {
            cpu_millis: Some(500),
            memory_bytes: Some(1 << 30),
            timeout: Some(Duration::from_secs(90)),
        };
        assert_eq!(asked, expected);
        let hint = Resources { cpu_millis: Some(1), memory_bytes: Some(2), timeout: None };
        let one = Resources::parse_request("memory=4k").unwrap();
        assert_eq!(one.or(hint), Resources { memory_bytes: Some(4096), ..hint });
        for (text, word) in [
            ("", "not a limit"),
            ("cpu", "not a limit"),
            ("gpu=1", "no limit"),
            ("cpu=1,cpu=2", "twice"),
            ("memory=1GB", "ambiguous"),
            ("cpu=0", "zero"),
            ("timeout=5", "unit"),
            ("timeout=0", "no time"),
        ] {
            let error = Resources::parse_request(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_hint_is_cut_and_a_request_refused() {
        let asked = Resources {
            cpu_millis: Some(2000),
            memory_bytes: Some(1 << 30),
            timeout: Some(Duration::from_secs(90)),
        };
        let ceiling = Resources { cpu_millis: Some(1000), memory_bytes: Some(512 << 20), timeout: None };
        let (effective, findings) = asked.clamped(ceiling);
        assert_eq!(effective, Resources { timeout: asked.timeout, ..ceiling });
        assert_eq!(
            findings,
            [
                "requested cpu 2000m exceeds ceiling 1000m: clamped",
                "requested memory 1024Mi exceeds ceiling 512Mi: clamped"
            ]
        );
        let denied = asked.within(ceiling).unwrap_err();
        assert_eq!(denied.code, Code::ImagePolicy);
        assert_eq!(
            denied.message,
            "requested cpu 2000m exceeds ceiling 1000m; requested memory 1024Mi exceeds ceiling 512Mi"
        );
        assert_eq!(asked.within(Resources::default()), Ok(asked));
        assert_eq!(Resources::default().clamped(ceiling).0, ceiling);
    }
}
