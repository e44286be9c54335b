//! `/packages` and its three spellings: install, upgrade and remove packages inside instances.

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::selector;
use crate::service::guest_work::PackageChange;

pub async fn install(call: Call) -> Result<Answer, Rejection> {
    change(call, PackageChange::Install, "install_package").await
}

pub async fn upgrade(call: Call) -> Result<Answer, Rejection> {
    change(call, PackageChange::Upgrade, "upgrade_packages").await
}

pub async fn remove(call: Call) -> Result<Answer, Rejection> {
    change(call, PackageChange::Remove, "remove_packages").await
}

async fn change(call: Call, change: PackageChange, verb: &str) -> Result<Answer, Rejection> {
    let fields = call.fields();
    let packages = fields.references(&["packages"])?.unwrap_or_default();
    let targets = selector::read(fields)?;
    let task = call
        .service
        .change_packages(&call.caller, change, packages, &targets)
        .await?;
    Ok(Answer::in_progress(verb, &task).accepted())
}
