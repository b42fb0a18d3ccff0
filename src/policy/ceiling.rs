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
