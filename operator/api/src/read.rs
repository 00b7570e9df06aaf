//! Files of objects, as people write them: text → values of core, or errors that name the file, the line, the
//! object, the field and the mend.

use crate::{
    field::Finding,
    kind::{Kind, SERVER_SET},
    lines::Lines,
    object::{Misread, Object, Unread, interpret},
    tree::Location,
    yaml::{self, Document},
};
use airlane_core::id::{Namespace, ObjectId};
use std::{collections::HashMap, fmt};

/// The longest file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// What a file says.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The objects that can be used.
    pub objects: Vec<Object>,
    /// The objects that cannot, in which case an earlier good version stays in force.
    pub refused: Vec<Refused>,
    /// Why they cannot, and what else is wrong in the file.
    pub errors: Vec<FileError>,
    /// How many objects of kinds that are not ours to read were passed over.
    pub passed_over: usize,
}

/// A document that cannot be used. An earlier good version of its object stays in force.
#[derive(Debug, Clone)]
pub struct Refused {
    /// The file, as given to [`read_file`].
    pub file: String,
    /// Which object, if that much could be read; if not, it may be any that the file held before.
    pub id: Option<ObjectId>,
    /// What is known of it all the same.
    pub unread: Unread,
    /// Where it begins.
    pub location: Location,
}

/// A mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    /// The file, as given to [`read_file`].
    pub file: String,
    /// Where.
    pub location: Location,
    /// The object, if that much could be read.
    pub object: Option<ObjectId>,
    /// The path of the field; empty: the whole object.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub mend: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.location.line)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}; {}", self.message, self.mend)
    }
}

impl std::error::Error for FileError {}

impl FileError {
    /// A mistake that is not of an object.
    pub fn of_file(file: &str, location: Location, message: String, mend: String) -> Self {
        FileError { file: file.into(), location, object: None, field: String::new(), message, mend }
    }

    /// A file of so many bytes, which is not read.
    pub fn too_long(file: &str, bytes: u64) -> Self {
        let mend = format!("split it into files of at most {FILE_BYTES_MAX}");
        FileError::of_file(file, Location::START, format!("the file has {bytes} bytes"), mend)
    }
}

/// Reads a file as it is on the disk; see [`read_file`].
pub fn read_bytes(file: &str, content: &[u8], system_namespace: &Namespace) -> Parsed {
    let error = match std::str::from_utf8(content) {
        Ok(text) => return read_file(file, text, system_namespace),
        Err(error) => error,
    };
    let (before, rest) = content.split_at(error.valid_up_to());
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    let in_line = before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let column = 1 + String::from_utf8_lossy(in_line).chars().count();
    let byte = rest.first().copied().unwrap_or_default();
    let message = format!("byte 0x{byte:02x} in column {column} is not UTF-8");
    let error = FileError::of_file(file, Location { line, column }, message, "save the file as UTF-8".into());
    Parsed { errors: vec![error], ..Parsed::default() }
}

/// Reads a file of YAML documents, or one of JSON. One bad document does not hide the others.
///
/// `file` is only told, never opened. In `system_namespace`, a policy without target is about the whole mesh.
pub fn read_file(file: &str, text: &str, system_namespace: &Namespace) -> Parsed {
    let mut parsed = Parsed::default();
    if text.len() > FILE_BYTES_MAX {
        parsed.errors.push(FileError::too_long(file, text.len() as u64));
        return parsed;
    }
    for document in yaml::documents(text.strip_prefix('\u{feff}').unwrap_or(text)) {
        parsed.read(file, document, system_namespace);
    }
    parsed.errors.sort_by_key(|error| error.location);
    parsed
}

impl Parsed {
    fn read(&mut self, file: &str, document: Document, system_namespace: &Namespace) {
        let Document { at, root, errors: syntax } = document;
        let syntax = syntax.into_iter().map(|error| Finding {
            at: Some(error.at),
            path: error.path,
            message: error.message,
            mend: error.mend,
        });
        let findings: Vec<Finding> = syntax.collect();
        let (id, findings, unread) = match root {
            None => (None, findings, Unread::default()),
            Some(root) if root.is_null() && findings.is_empty() => return,
            Some(root) if Kind::is_foreign(&root) => {
                self.passed_over += 1;
                return;
            }
            Some(mut root) => {
                root.retain(|key| key != "status");
                if let Some(metadata) = root.get_mut("metadata") {
                    metadata.retain(|key| !SERVER_SET.contains(&key));
                }
                match interpret(&root, findings, system_namespace) {
                    Ok(meant) => return self.objects.push(meant.written(file, at, Lines::of(&root))),
                    Err(Misread { id, findings, unread }) => (id, findings, unread),
                }
            }
        };
        self.errors.extend(findings.into_iter().map(|finding| FileError {
            file: file.into(),
            location: finding.at.unwrap_or(at),
            object: id.clone(),
            field: finding.path.to_string(),
            message: finding.message,
            mend: finding.mend,
        }));
        self.refused.push(Refused { file: file.into(), id, unread, location: at });
    }
}

/// One set of objects from many files. Of two objects of one name the first is kept and the second is an error.
pub fn merge(files: impl IntoIterator<Item = Parsed>) -> Parsed {
    let mut merged = Parsed::default();
    let mut first: HashMap<ObjectId, (String, usize)> = HashMap::new();
    for Parsed { objects, refused, errors, passed_over } in files {
        merged.refused.extend(refused);
        merged.passed_over += passed_over;
        merged.errors.extend(errors);
        for object in objects {
            if let Some((file, line)) = first.get(&object.id) {
                merged.errors.push(FileError {
                    file: object.file,
                    location: object.location,
                    object: Some(object.id),
                    field: String::new(),
                    message: format!("is already in {file}:{line}"),
                    mend: "remove or rename one of the two".into(),
                });
                continue;
            }
            first.insert(object.id.clone(), (object.file.clone(), object.location.line));
            merged.objects.push(object);
        }
    }
    merged
}
