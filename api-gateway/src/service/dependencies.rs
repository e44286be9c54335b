//! What has to run before an instance of a provisioner does: provisioners that depend on others, which users make. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use virtshell_crds::Provisioner;

use super::error::uid;
use super::{Field, ServiceError};
use crate::store::Cached;

/// Goes through all that `start` depends on, depth first and in the order of the lists; `find` looks a provisioner up and
/// says whether it may be used. None of them may depend on itself.
pub fn walk(
    start: &Arc<Provisioner>,
    find: impl Fn(&str) -> Result<Arc<Provisioner>, ServiceError>,
) -> Result<(), ServiceError> {
    // A chain may be as long as there are provisioners: no recursion. Each with how many of its list were seen to.
    let mut path: Vec<(Arc<Provisioner>, usize)> = vec![(start.clone(), 0)];
    let mut on_path = HashSet::from([uid(start.as_ref()).to_owned()]);
    let mut done = HashSet::new();
    while let Some((at, seen)) = path.last_mut() {
        let Some(dependency) = at.spec.depends.get(*seen) else {
            on_path.remove(uid(at.as_ref()));
            done.insert(uid(at.as_ref()).to_owned());
            path.pop();
            continue;
        };
        *seen += 1;
        let next = find(&dependency.provisioner)?;
        let id = uid(next.as_ref());
        if on_path.contains(id) {
            let reason = format!("provisioner {} depends on itself", next.wire_name());
            return Err(ServiceError::invalid(Field::Depends, reason));
        }
        if !done.contains(id) {
            on_path.insert(id.to_owned());
            path.push((next, 0));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::service::Kind;

    /// Provisioners by name, each with what it depends on.
    fn provisioners(of: &[(&str, &[&str])]) -> Vec<Arc<Provisioner>> {
        let made = of.iter().map(|(name, depends)| {
            let depends: Vec<_> = depends.iter().map(|name| json!({"provisioner": name})).collect();
            let object = json!({
                "apiVersion": "virtshell.io/v1alpha1",
                "kind": "Provisioner",
                "metadata": {"name": name, "uid": name},
                "spec": {"depends": depends, "image": "i"},
            });
            Arc::new(serde_json::from_value(object).unwrap())
        });
        made.collect()
    }

    fn walked(of: &[(&str, &[&str])]) -> Result<(), ServiceError> {
        let all = provisioners(of);
        walk(&all[0], |name| {
            let found = all.iter().find(|p| uid(p.as_ref()) == name);
            found.cloned().ok_or_else(|| ServiceError::UnknownReference {
                kind: Kind::Provisioner,
                name: name.to_owned(),
            })
        })
    }

    #[test]
    fn what_may_depend_on_what() {
        let circle = |name: &str| {
            let reason = format!("provisioner {name} depends on itself");
            Err(ServiceError::invalid(Field::Depends, reason))
        };
        let missing = Err(ServiceError::UnknownReference {
            kind: Kind::Provisioner,
            name: "x".to_owned(),
        });
        for (rule, of, expected) in [
            ("nothing", vec![("a", [].as_slice())], Ok(())),
            ("another", vec![("a", &["b"]), ("b", &[])], Ok(())),
            (
                "the same twice, by two ways",
                vec![("a", &["b", "c"]), ("b", &["d"]), ("c", &["d"]), ("d", &[])],
                Ok(()),
            ),
            ("itself", vec![("a", &["a"])], circle("a")),
            (
                "itself, around others",
                vec![("a", &["b"]), ("b", &["c"]), ("c", &["b"])],
                circle("b"),
            ),
            ("nobody", vec![("a", &["b"]), ("b", &["x"])], missing),
        ] {
            assert_eq!(walked(&of), expected, "{rule}");
        }
    }

    #[test]
    fn a_chain_may_be_of_any_length() {
        let names: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();
        let links: Vec<[&str; 1]> = names[1..].iter().map(|name| [name.as_str()]).collect();
        let mut of: Vec<(&str, &[&str])> = names
            .iter()
            .zip(&links)
            .map(|(name, next)| (name.as_str(), next.as_slice()))
            .collect();
        of.push(("19999", &[]));
        let all = provisioners(&of);
        let find = |name: &str| Ok(all[name.parse::<usize>().unwrap()].clone());
        // Less than a worker of the gateway has.
        let small = std::thread::Builder::new().stack_size(256 * 1024);
        let ran = std::thread::scope(|scope| {
            let walk = small.spawn_scoped(scope, || walk(&all[0], find)).unwrap();
            walk.join().unwrap()
        });
        assert_eq!(ran, Ok(()));
    }
}
