//! Reading back the shares that a runtime layer carries: what the judge must believe is what a proxy acknowledged.

use crate::catalog::Resource;
use envoy_types::pb::{
    envoy::service::runtime::v3::Runtime,
    google::protobuf::{Struct, value},
};
use prost::Message;
use std::collections::BTreeMap;

/// The shares in a [`crate::catalog::Kind::Runtime`] resource: runtime key → parts of
/// [`airlane_core::mesh::FULL_SHARE`]. Entries that are no whole number in range are left out, as Envoy would.
///
/// # Errors
/// If the body is no runtime layer.
pub fn shares_of(resource: &Resource) -> Result<BTreeMap<String, u32>, prost::DecodeError> {
    let Struct { fields } = Runtime::decode(resource.body.value.as_slice())?.layer.unwrap_or_default();
    let share = |value: Option<value::Kind>| match value {
        Some(value::Kind::NumberValue(parts))
            if parts.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&parts) =>
        {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a whole number in range"
            )]
            Some(parts as u32)
        }
        _ => None,
    };
    Ok(fields.into_iter().filter_map(|(key, value)| Some((key, share(value.kind)?))).collect())
}
