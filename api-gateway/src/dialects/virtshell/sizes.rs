//! Sizes on the wire: numbers and texts with or without a unit, in the forms that the documents mix. Pure.
//!
//! 1 GB is 1024 MB; a bare number takes its field's unit.

use serde_json::{Number, Value};

/// Most digits of a size before and after the point.
const MAX_DIGITS: usize = 15;
const MIB_PER_GIB: i64 = 1024;
/// What a size without a unit means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Unit of a bare number, in MiB.
    unit_mib: i64,
    /// A bare number from here on is in MiB: the other documented form.
    mib_from: Option<i64>,
    /// Least and most MiB.
    range: (i64, i64),
}

/// Host memory: GB, or MB from 1024 on.
pub const HOST_MEMORY: Size = Size {
    unit_mib: MIB_PER_GIB,
    mib_from: Some(1024),
    range: (1, i64::MAX),
};
/// Host disk: GB.
pub const HOST_CAPACITY: Size = Size {
    unit_mib: MIB_PER_GIB,
    mib_from: None,
    range: (1, i64::MAX),
};
/// Provisioner memory: GB, or MB from 1024 on.
pub const PROVISIONER_MEMORY: Size = Size {
    unit_mib: MIB_PER_GIB,
    mib_from: Some(1024),
    range: (1, MAX_MEMORY),
};
/// Provisioner disk: GB, or MB from 10240 on.
pub const PROVISIONER_DISK: Size = Size {
    unit_mib: MIB_PER_GIB,
    mib_from: Some(10_240),
    range: (1, MAX_DISK),
};
/// Instance memory: MB.
pub const INSTANCE_MEMORY: Size = Size {
    unit_mib: 1,
    mib_from: None,
    range: (32, MAX_MEMORY),
};
/// Instance disk: GB, or MB from 10240 on.
pub const INSTANCE_DISK: Size = Size {
    unit_mib: MIB_PER_GIB,
    mib_from: Some(10_240),
    range: (1, MAX_DISK),
};
/// 16 TiB, as in the schema.
const MAX_MEMORY: i64 = 16_777_216;
/// 64 TiB, as in the schema.
const MAX_DISK: i64 = 67_108_864;

impl Size {
    /// Whole MiB of a text; the error is the reason for a refusal.
    pub fn parse(self, text: &str) -> Result<i64, String> {
        let malformed = || "must be a number, with or without MB, GB or TB".to_owned();
        let text = text.trim();
        let digits_end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
            return Err(malformed());
        }
        if whole.len() > MAX_DIGITS || fraction.len() > MAX_DIGITS {
            return Err("is out of range".to_owned());
        }
        let number: i64 = whole.parse().map_err(|_| malformed())?;
        let unit_mib = match unit.trim_start().to_ascii_uppercase().as_str() {
            "" if self.mib_from.is_some_and(|from| number >= from) => 1,
            "" => self.unit_mib,
            "M" | "MB" | "MIB" => 1,
            "G" | "GB" | "GIB" => MIB_PER_GIB,
            "T" | "TB" | "TIB" => MIB_PER_GIB * MIB_PER_GIB,
            _ => return Err(malformed()),
        };
        let part: i128 = fraction.parse().map_err(|_| malformed())?;
        let scale = 10_i128.pow(fraction.len() as u32);
        let mib = i128::from(number) * i128::from(unit_mib) + part * i128::from(unit_mib) / scale;
        let (least, most) = self.range;
        match i64::try_from(mib) {
            Ok(mib) if mib < least => Err(format!("must be at least {least} MB")),
            Ok(mib) if mib <= most => Ok(mib),
            _ => Err("is out of range".to_owned()),
        }
    }
}

/// `"16GB"`, or `"<n>MB"` when it is not whole GB.
pub fn size_text(mib: i64) -> String {
    if mib % MIB_PER_GIB == 0 {
        format!("{}GB", mib / MIB_PER_GIB)
    } else {
        format!("{mib}MB")
    }
}

/// A number of GB, or the text `"<n>MB"` when it is not whole GB.
pub fn size_in_gb(mib: i64) -> Value {
    if mib % MIB_PER_GIB == 0 {
        Value::Number(Number::from(mib / MIB_PER_GIB))
    } else {
        Value::String(format!("{mib}MB"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::values::Fields;
    use super::*;

    #[test]
    fn sizes_of_the_contract() {
        for (size, value, mib) in [
            (HOST_MEMORY, json!("16GB"), Some(16 * 1024)),
            (HOST_MEMORY, json!(16), Some(16 * 1024)),
            (HOST_MEMORY, json!("16"), Some(16 * 1024)),
            (HOST_MEMORY, json!(1023), Some(1023 * 1024)),
            (HOST_MEMORY, json!(1024), Some(1024)),
            (HOST_MEMORY, json!("4096"), Some(4096)),
            (HOST_CAPACITY, json!("120GB"), Some(120 * 1024)),
            (HOST_CAPACITY, json!(4096), Some(4096 * 1024)),
            (PROVISIONER_MEMORY, json!(4), Some(4096)),
            (PROVISIONER_MEMORY, json!(4096), Some(4096)),
            (PROVISIONER_DISK, json!(20), Some(20 * 1024)),
            (PROVISIONER_DISK, json!(20480), Some(20480)),
            (PROVISIONER_DISK, json!(10239), Some(10239 * 1024)),
            (INSTANCE_MEMORY, json!(1024), Some(1024)),
            (INSTANCE_MEMORY, json!("1GB"), Some(1024)),
            (INSTANCE_MEMORY, json!(31), None),
            (INSTANCE_MEMORY, json!(32), Some(32)),
            (INSTANCE_DISK, json!("2GB"), Some(2048)),
            (INSTANCE_DISK, json!(2), Some(2048)),
            (INSTANCE_DISK, json!(10240), Some(10240)),
            (INSTANCE_DISK, json!("1.5GB"), Some(1536)),
            (INSTANCE_DISK, json!(1.5), Some(1536)),
            (INSTANCE_DISK, json!(" 2 gib "), Some(2048)),
            (INSTANCE_DISK, json!("1T"), Some(1_048_576)),
            (INSTANCE_DISK, json!("0.0009GB"), None),
            (INSTANCE_DISK, json!("100.9MB"), Some(100)),
            (INSTANCE_DISK, json!("0"), None),
            (INSTANCE_DISK, json!(-1), None),
            (INSTANCE_DISK, json!("-1GB"), None),
            (INSTANCE_DISK, json!("GB"), None),
            (INSTANCE_DISK, json!("2 KB"), None),
            (INSTANCE_DISK, json!("2.GB"), None),
            (INSTANCE_DISK, json!(".5GB"), None),
            (INSTANCE_DISK, json!("1.2.3GB"), None),
            (INSTANCE_DISK, json!("2GB extra"), None),
            (INSTANCE_DISK, json!("9999999999999999GB"), None),
            (INSTANCE_DISK, json!("999999999999999TB"), None),
            (INSTANCE_DISK, json!(1e30), None),
            (INSTANCE_DISK, json!(true), None),
            (INSTANCE_DISK, json!([2]), None),
            (INSTANCE_DISK, json!(""), None),
        ] {
            let object = json!({"f": value});
            let parsed = Fields::of(object.as_object().unwrap()).size("f", size);
            assert_eq!(parsed.clone().ok().flatten(), mib, "{value} {parsed:?}");
        }
        let absent = json!({"f": null});
        assert_eq!(
            Fields::of(absent.as_object().unwrap()).size("f", HOST_MEMORY),
            Ok(None)
        );
    }

    #[test]
    fn sizes_are_written_as_documented() {
        assert_eq!(
            (size_text(16_384), size_text(1500)),
            ("16GB".to_owned(), "1500MB".to_owned())
        );
        assert_eq!((size_in_gb(4096), size_in_gb(1500)), (json!(4), json!("1500MB")));
    }
}
