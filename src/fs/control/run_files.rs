//! The files of a run directory: names, modes, and what each is.

/// One of a run's names; the number is its slot in inode numbers and must never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(super) enum Slot {
    /// The directory itself.
    Dir = 0,
    Args = 1,
    Ctl = 2,
    State = 3,
    Record = 4,
    Plan = 5,
    Stdout = 6,
    Stderr = 7,
    ExitCode = 8,
    LastError = 9,
    Stdin = 10,
    Out = 11,
    /// The executable under the name `wait`; has the executable's inode.
    Wait = 12,
    /// The executable under the name `follow`.
    Follow = 13,
    /// `.addonfs/runs/<run id>`.
    Link = 14,
}

/// Names of a run directory in the order of listings.
pub(super) const NAMES: [(&str, Slot); 13] = [
    ("args.json", Slot::Args),
    ("ctl", Slot::Ctl),
    ("exit_code", Slot::ExitCode),
    ("follow", Slot::Follow),
    ("last_error", Slot::LastError),
    ("out", Slot::Out),
    ("plan.json", Slot::Plan),
    ("record.json", Slot::Record),
    ("state", Slot::State),
    ("stderr", Slot::Stderr),
    ("stdin", Slot::Stdin),
    ("stdout", Slot::Stdout),
    ("wait", Slot::Wait),
];

impl Slot {
    /// The slot of a name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, slot)| *slot)
    }

    /// The slot of a number.
    pub(super) fn of_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Dir),
            14 => Some(Self::Link),
            _ => NAMES.iter().map(|(_, slot)| *slot).find(|slot| *slot as u8 == number),
        }
    }

    /// Permission bits. Owner is the caller who made the run, group is the configured one.
    pub(super) const fn perm(self) -> u16 {
        match self {
            Self::Dir | Self::Out => 0o750,
            Self::Args => 0o640,
            Self::Ctl => 0o660,
            Self::Stdin => 0o220,
            Self::Wait | Self::Follow => 0o555,
            Self::Link => 0o777,
            Self::State
            | Self::Record
            | Self::Plan
            | Self::Stdout
            | Self::Stderr
            | Self::ExitCode
            | Self::LastError => 0o440,
        }
    }

    /// Whether the file is rendered from what the run says of itself.
    pub(super) const fn is_rendered(self) -> bool {
        matches!(
            self,
            Self::Args | Self::State | Self::Record | Self::Plan | Self::ExitCode | Self::LastError
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_to_the_same_slot() {
        for (name, slot) in NAMES {
            assert_eq!(Slot::of_name(name), Some(slot));
            assert_eq!(Slot::of_number(slot as u8), Some(slot));
        }
        assert_eq!(Slot::of_number(0), Some(Slot::Dir));
        assert_eq!(Slot::of_number(14), Some(Slot::Link));
        assert_eq!(Slot::of_number(15), None);
        assert_eq!(Slot::of_name("Dir"), None);
        assert!(NAMES.is_sorted_by_key(|(name, _)| *name));
    }
}
