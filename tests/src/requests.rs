//! What the API server was asked, as it counts itself.

use std::collections::BTreeMap;
use std::fmt;

use virtshell_crds::GROUP;

use crate::ControlPlane;

/// Verbs that write.
const WRITES: [&str; 5] = ["POST", "PUT", "PATCH", "APPLY", "DELETE"];

/// Requests since the API server started, or between two moments.
#[derive(Debug, Clone, Default)]
pub struct Requests(BTreeMap<Request, u64>);

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Request {
    verb: String,
    /// With its group, when that is not ours: `leases.coordination.k8s.io`.
    resource: String,
    subresource: String,
}

impl Requests {
    /// Reads the API server's metrics: every answer counts, failures too.
    ///
    /// # Errors
    /// When the API server does not say.
    pub fn so_far(control_plane: &ControlPlane) -> anyhow::Result<Self> {
        let metrics = control_plane.kubectl().ok(["get", "--raw", "/metrics"])?;
        Ok(Self::parse(&metrics))
    }

    /// Takes `apiserver_request_total` out of the API server's metrics.
    #[must_use]
    pub fn parse(metrics: &str) -> Self {
        let mut all = Self::default();
        for line in metrics.lines() {
            let Some(rest) = line.strip_prefix("apiserver_request_total{") else {
                continue;
            };
            let Some((labels, number)) = rest.rsplit_once("} ") else {
                continue;
            };
            let label = |name: &str| {
                let rest = labels.split(',').find_map(|pair| pair.strip_prefix(name));
                rest.unwrap_or_default().trim_matches(['=', '"']).to_owned()
            };
            let resource = match label("group=") {
                group if group.is_empty() || group == GROUP => label("resource="),
                group => format!("{}.{group}", label("resource=")),
            };
            let request = Request {
                verb: label("verb="),
                resource,
                subresource: label("subresource="),
            };
            // The number is written as a float; counts below 2^53 are exact in one.
            let number: f64 = number.trim().parse().unwrap_or(0.0);
            *all.0.entry(request).or_default() += number as u64;
        }
        all
    }

    /// Those since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let less = |(what, count): (&Request, &u64)| {
            let rest = count - before.0.get(what).copied().unwrap_or(0).min(*count);
            (rest > 0).then(|| (what.clone(), rest))
        };
        Self(self.0.iter().filter_map(less).collect())
    }

    /// Those with one of these verbs, about `resource` and its subresources.
    #[must_use]
    pub fn with(&self, verbs: &[&str], resource: &str) -> u64 {
        self.count(|r| verbs.contains(&r.verb.as_str()) && r.resource == resource)
    }

    /// Those that write, about `resource` and its subresources.
    #[must_use]
    pub fn writes(&self, resource: &str) -> u64 {
        self.with(&WRITES, resource)
    }

    fn count(&self, counts: impl Fn(&Request) -> bool) -> u64 {
        let counted = self.0.iter().filter(|(request, _)| counts(request));
        counted.map(|(_, count)| count).sum()
    }
}

/// `APPLY instances/status 2000, POST instances 1000`, the most first; below ten are left out.
impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sums = BTreeMap::<String, u64>::new();
        for (request, count) in &self.0 {
            let slash = if request.subresource.is_empty() { "" } else { "/" };
            let what = format!(
                "{} {}{slash}{}",
                request.verb, request.resource, request.subresource
            );
            *sums.entry(what).or_default() += count;
        }
        let mut all: Vec<_> = sums.into_iter().filter(|(_, count)| *count >= 10).collect();
        all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
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
        assert_eq!(requests.with(&["LIST", "WATCH"], "instances"), 5);
        assert_eq!(
            requests.to_string(),
            "APPLY instances/status 23, POST instances 12"
        );
        let since = requests.since(&Requests::parse(BEFORE));
        assert_eq!(since.writes("instances"), 20);
        assert_eq!(since.to_string(), "APPLY instances/status 20");
    }

    #[test]
    fn only_writes_to_instances_count() {
        for (labels, expected) in [
            (r#"group="virtshell.io",resource="instances",verb="APPLY""#, 3),
            (r#"group="virtshell.io",resource="instances",verb="WATCH""#, 0),
            (r#"group="virtshell.io",resource="hosts",verb="APPLY""#, 0),
            (r#"group="example.org",resource="instances",verb="APPLY""#, 0),
        ] {
            let line = format!("apiserver_request_total{{code=\"200\",{labels}}} 3");
            assert_eq!(Requests::parse(&line).writes("instances"), expected, "{labels}");
        }
    }
}
