//! Reading a certificate request.

use airlane_core::pki::{Asked, AskedName, LONGEST_REQUEST, Refusal};
use rcgen::SubjectPublicKeyInfo;
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY},
    prelude::FromDer as _,
};

/// What a request says, and its key if it is of the kind that is accepted.
///
/// # Errors
/// If it is too long or no request.
pub(super) fn read_request(der: &[u8]) -> Result<(Asked, Option<SubjectPublicKeyInfo>), Refusal> {
    if der.len() > LONGEST_REQUEST {
        return Err(Refusal::TooLong);
    }
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| Refusal::Malformed)?;
    if !rest.is_empty() {
        return Err(Refusal::Malformed);
    }
    let spki = &request.certification_request_info.subject_pki;
    let curve = spki.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    let p256 = spki.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256);
    let mut asked = Asked {
        p256,
        self_signed: request.verify_signature().is_ok(),
        names: Vec::new(),
        authority: false,
        more: false,
    };
    for attribute in request.certification_request_info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(extensions) = attribute.parsed_attribute() else {
            asked.more = true;
            continue;
        };
        for extension in &extensions.extensions {
            note_extension(extension.parsed_extension(), &mut asked);
        }
    }
    let key = if p256 { SubjectPublicKeyInfo::from_der(spki.raw).ok() } else { None };
    Ok((asked, key))
}

fn note_extension(extension: &ParsedExtension<'_>, asked: &mut Asked) {
    match extension {
        ParsedExtension::SubjectAlternativeName(san) => {
            asked.names.extend(san.general_names.iter().map(|name| match name {
                GeneralName::URI(uri) => AskedName::Uri((*uri).to_owned()),
                _ => AskedName::Other,
            }));
        }
        ParsedExtension::BasicConstraints(constraints) => asked.authority |= constraints.ca,
        ParsedExtension::KeyUsage(usage) => {
            asked.authority |= usage.key_cert_sign() || usage.crl_sign();
            asked.more |= usage.encipher_only() || usage.decipher_only() || usage.data_encipherment();
        }
        ParsedExtension::ExtendedKeyUsage(usage) => {
            asked.more |= usage.any
                || usage.code_signing
                || usage.email_protection
                || usage.time_stamping
                || usage.ocsp_signing
                || !usage.other.is_empty();
        }
        ParsedExtension::SubjectKeyIdentifier(_) => {}
        _ => asked.more = true,
    }
}
