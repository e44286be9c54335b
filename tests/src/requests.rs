//! What the API server was asked, as it counts itself.

use std::collections::BTreeMap;
use std::fmt;

use crate::ControlPlane;

/// Requests by verb and what they were about (`APPLY instances/status`), since the API server started.
#[derive(Debug, Clone, Default)]
pub struct Requests(BTreeMap<String, u64>);

impl Requests {
    /// Reads `apiserver_request_total` (every answer counts, failures too).
    ///
    /// # Errors
    /// When the API server does not say.
    pub fn so_far(control_plane: &ControlPlane) -> anyhow::Result<Self> {
        Ok(Self::parse(
            &control_plane.kubectl().ok(["get", "--raw", "/metrics"])?,
        ))
    }

    fn parse(metrics: &str) -> Self {
        let mut all = Self::default();
        for line in metrics.lines() {
            let Some(rest) = line.strip_prefix("apiserver_request_total{") else {
                continue;
            };
            let Some((labels, number)) = rest.rsplit_once("} ") else {
                continue;
            };
            let label = |name: &str| {
                let rest = labels.split(',').find_map(|pair| pair.strip_prefix(name))?;
                Some(rest.trim_matches(['=', '"']))
            };
            let (verb, resource) = (label("verb=").unwrap_or(""), label("resource=").unwrap_or(""));
            let subject = match label("subresource=") {
                None | Some("") => resource.to_owned(),
                Some(part) => format!("{resource}/{part}"),
            };
            // The number is written as a float; counts below 2^53 are exact in one.
            let number: f64 = number.trim().parse().unwrap_or(0.0);
            *all.0.entry(format!("{verb} {subject}")).or_default() += number as u64;
        }
        all
    }

    /// Those since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let less = |(what, count): (&String, &u64)| {
            let rest = count - before.0.get(what).copied().unwrap_or(0).min(*count);
            (rest > 0).then(|| (what.clone(), rest))
        };
        Self(self.0.iter().filter_map(less).collect())
    }

    /// Those that write, about `resource` and its subresources.
    #[must_use]
    pub fn writes(&self, resource: &str) -> u64 {
        let writes = ["POST", "PUT", "PATCH", "APPLY", "DELETE"];
        let counted = self.0.iter().filter(|(what, _)| {
            what.split_once(' ').is_some_and(|(verb, subject)| {
                writes.contains(&verb) && subject.split('/').next() == Some(resource)
            })
        });
        counted.map(|(_, count)| count).sum()
    }
}

/// `APPLY instances/status 2000, POST instances 1000`, the most first; below ten are left out.
impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all: Vec<_> = self.0.iter().filter(|(_, count)| **count >= 10).collect();
        all.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let words: Vec<_> = all
            .iter()
            .map(|(what, count)| format!("{what} {count}"))
            .collect();
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = r#"# TYPE apiserver_request_total counter
apiserver_request_total{code="200",component="apiserver",dry_run="",group="virtshell.io",resource="instances",scope="resource",subresource="status",verb="APPLY",version="v1alpha1"} 3
apiserver_request_total{code="201",component="apiserver",dry_run="",group="virtshell.io",resource="instances",scope="resource",subresource="",verb="POST",version="v1alpha1"} 12
"#;

    #[test]
    fn requests_are_counted_by_verb_and_subject() {
        let after = format!(
            "{BEFORE}{}",
            r#"apiserver_request_total{code="409",component="apiserver",dry_run="",group="virtshell.io",resource="instances",scope="resource",subresource="status",verb="APPLY",version="v1alpha1"} 20
apiserver_request_total{code="200",component="apiserver",dry_run="",group="virtshell.io",resource="instances",scope="cluster",subresource="",verb="LIST",version="v1alpha1"} 5
"#
        );
        let requests = Requests::parse(&after);
        assert_eq!(requests.writes("instances"), 35);
        assert_eq!(
            requests.to_string(),
            "APPLY instances/status 23, POST instances 12"
        );
        let since = requests.since(&Requests::parse(BEFORE));
        assert_eq!(since.writes("instances"), 20);
        assert_eq!(since.to_string(), "APPLY instances/status 20");
    }
}
