//! The reasons that the schema and the REST API give for a refusal, each spelled once.
//!
//! The schema's CEL rules and the gateway's validation quote these, so that `kubectl apply` and a REST client read the
//! same sentence. A REST message is `Field <field>: <reason>`.

/// Reason for a change of a field that is fixed at creation.
pub const IMMUTABLE: &str = "cannot change once set";
/// Reason for another name of what others refer to by its name.
pub const KEEPS_NAME: &str = "cannot change once set, but to end a NameConflict";
/// Reason for a smaller root disk.
pub const ONLY_GROWS: &str = "may only grow";
/// Reason for a permission string that does not parse.
pub const PERMISSIONS: &str =
    "must be nine of r, w, x, - or _: three triplets (owner, group, others), no letter twice in a triplet";
/// Reason for a launch whose bounds are the wrong way round.
pub const LAUNCH_ORDER: &str = "min must not be greater than max";
/// Reason for an object name that no domain or label could carry.
pub const NAME_TOO_LONG: &str = "must have at most 63 characters";
