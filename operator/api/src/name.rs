//! Names of objects, as texts.

use crate::shape::{Misshapen, Shape, written_as};
use airlane_core::id::{Name, Namespace, Revision, ServiceAccount};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, fmt, str::FromStr};

pub(crate) const SHAPES: [&Shape; 2] = [&LABEL, &SUBDOMAIN];

const LABEL: Shape = Shape {
    pattern: "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
    length_max: 63,
    description: "A DNS label: at most 63 lower-case letters, digits and '-'.",
    wanted: "write a name",
    check: |text| text.parse::<NameText>().map(drop),
};

const SUBDOMAIN: Shape = Shape {
    pattern: r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    length_max: 253,
    description: "A DNS subdomain: at most 253 lower-case letters, digits, '-' and '.'.",
    wanted: "write a name",
    check: |text| text.parse::<AccountText>().map(drop),
};

/// The names of core, as texts with their shape.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $core:ty, $shape:ident, $mend:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub struct $type(pub $core);
        written_as!($type, $shape);

        impl FromStr for $type {
            type Err = Misshapen;
            fn from_str(text: &str) -> Result<Self, Misshapen> {
                text.parse().map($type).map_err(|_| {
                    let only_dots = text.replace('.', "-").parse::<$core>().is_ok();
                    let mend = if only_dots { "write it without dots, as in v1-2-0 for v1.2.0" } else { $mend };
                    Misshapen::new(text, "is not a valid name", mend)
                })
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! label {
    ($(#[$doc:meta])* $type:ident, $core:ty) => {
        name!(
            $(#[$doc])* $type, $core, LABEL,
            "use at most 63 lower-case letters, digits and '-', starting and ending with a letter or digit"
        );
    };
}

label!(
    /// The name of a service, a workload or an object.
    NameText,
    Name
);
label!(
    /// The name of a namespace.
    NamespaceText,
    Namespace
);
label!(
    /// A version of a workload.
    RevisionText,
    Revision
);
name!(
    /// The name of a service account, or of something else that a policy is about.
    AccountText,
    ServiceAccount,
    SUBDOMAIN,
    "use at most 253 lower-case letters, digits, '-' and '.', each part starting and ending with a letter or digit"
);
