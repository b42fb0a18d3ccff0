//! Where a path inside a layer's root leads, for all who apply layers: one rule, because a tree that streams and the tree
//! that takes its place must not differ.

use super::merge::{NAME_MAX, PATH_MAX};

/// As many symlinks as umoci follows on one path.
const MAX_LINKS: usize = 255;

/// One component of a resolved path: its name, and its node if it exists.
pub(super) struct Step<'p, N> {
    pub(super) name: &'p [u8],
    pub(super) node: Option<N>,
}

/// Follows `path` from `root` as far as it exists; what does not exist is taken literally. Symbolic links are followed
/// inside the root, where `..` stops. `child` finds the node of a name in a directory, and its target if it is a link.
pub(super) fn resolve<'p, N: Copy>(
    path: &'p [u8],
    root: N,
    child: impl Fn(N, &[u8]) -> Option<(N, Option<&'p [u8]>)>,
) -> Result<Vec<Step<'p, N>>, &'static str> {
    let mut steps: Vec<Step<'p, N>> = Vec::new();
    let mut todo: Vec<&'p [u8]> = path.split(|byte| *byte == b'/').rev().collect();
    let mut links = 0;
    while let Some(name) = todo.pop() {
        match name {
            b"" | b"." => continue,
            b".." => {
                steps.pop();
                continue;
            }
            _ => {}
        }
        let here = steps.last().map_or(Some(root), |step| step.node);
        let found = here.and_then(|here| child(here, name));
        if let Some((_, Some(target))) = found {
            links += 1;
            if links > MAX_LINKS {
                return Err("its directory lies behind a loop of symbolic links");
            }
            if target.first() == Some(&b'/') {
                steps.clear();
            }
            todo.extend(target.split(|byte| *byte == b'/').rev());
            continue;
        }
        if name.len() > NAME_MAX || steps.len() >= PATH_MAX / 2 {
            return Err("its directory's name or depth is more than a path can have");
        }
        steps.push(Step { name, node: found.map(|(node, _)| node) });
    }
    Ok(steps)
}
