//! Recognising the operator: by a root whose fingerprint the sidecar was told, later by the mesh's bundle.

use ring::digest::{SHA256, digest};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::sync::Arc;
use webpki::EndEntityCert;

/// What makes a server the operator: its chain ends in a trusted root, and its certificate carries its identity.
#[derive(Debug)]
pub(crate) struct Operator {
    /// SHA-256 of the DER of roots to trust if the server presents them.
    pub(crate) fingerprints: Vec<[u8; 32]>,
    /// Roots to trust in any case.
    pub(crate) roots: Arc<RootCertStore>,
    /// The URI SAN the server must have.
    pub(crate) identity: String,
    /// Who does the arithmetic.
    pub(crate) crypto: Arc<CryptoProvider>,
}

impl Operator {
    /// The trusted roots: those we hold, and a presented one that has a known fingerprint.
    fn trusted(&self, presented: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, Error> {
        let pinned = presented.iter().find(|certificate| {
            let found = digest(&SHA256, certificate);
            self.fingerprints.iter().any(|wanted| found.as_ref() == wanted)
        });
        let Some(pinned) = pinned else {
            if self.roots.is_empty() {
                return Err(Error::General(
                    "the server does not present a root certificate this sidecar was told of: it is another \
                     operator, or this one was set up anew; use a new join string, or a new pod"
                        .into(),
                ));
            }
            return Ok(Arc::clone(&self.roots));
        };
        let mut roots = RootCertStore::clone(&self.roots);
        roots.add(pinned.clone().into_owned())?;
        Ok(Arc::new(roots))
    }
}

impl ServerCertVerifier for Operator {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = self.trusted(intermediates)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.crypto))
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let verified =
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let parsed = EndEntityCert::try_from(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        if parsed.valid_uri_names().eq([self.identity.as_str()]) {
            Ok(verified)
        } else {
            Err(Error::General(format!(
                "the server is not {}; it belongs to the mesh, but is not its operator",
                self.identity
            )))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.crypto.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.crypto.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}

/// Any server: for probes, which ask whether somebody is there, and tell them nothing.
#[derive(Debug)]
pub(crate) struct Anybody {
    /// Who does the arithmetic.
    pub(crate) crypto: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ca, OPERATOR};
    use airlane_wire::join::OPERATOR_DNS_NAME;

    struct Trust {
        fingerprints: Vec<[u8; 32]>,
        roots: RootCertStore,
    }

    fn check(trust: Trust, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        let operator = Operator {
            fingerprints: trust.fingerprints,
            roots: Arc::new(trust.roots),
            identity: OPERATOR.into(),
            crypto: Arc::new(rustls::crypto::ring::default_provider()),
        };
        let name = ServerName::try_from(OPERATOR_DNS_NAME).expect("a name");
        operator.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()).map(drop)
    }

    fn pinned(ca: &Ca) -> Trust {
        Trust { fingerprints: vec![Ca::new().fingerprint(), ca.fingerprint()], roots: RootCertStore::empty() }
    }

    fn bundle(ca: &Ca) -> Trust {
        let mut roots = RootCertStore::empty();
        roots.add(ca.root_der()).expect("a root");
        Trust { fingerprints: Vec::new(), roots }
    }

    #[test]
    fn knows_the_operator_by_fingerprint_or_bundle() {
        let ca = Ca::new();
        let chain = ca.server(OPERATOR, OPERATOR_DNS_NAME).chain;
        check(pinned(&ca), &chain).expect("by fingerprint");
        check(bundle(&ca), &chain).expect("by bundle");
        check(bundle(&ca), &chain[..2]).expect("by bundle, root not presented");
    }

    #[test]
    fn refuses_everybody_else() {
        let (ca, other) = (Ca::new(), Ca::new());
        let ours = ca.server(OPERATOR, OPERATOR_DNS_NAME).chain;
        let theirs = other.server(OPERATOR, OPERATOR_DNS_NAME).chain;
        let wrong = check(pinned(&ca), &theirs).expect_err("another root");
        assert!(wrong.to_string().contains("new join string"), "{wrong}");
        check(bundle(&ca), &theirs).expect_err("another root");
        check(pinned(&ca), &ours[..2]).expect_err("root not presented");
        // The right root beside a chain that does not end in it proves nothing.
        check(pinned(&ca), &[theirs[0].clone(), theirs[1].clone(), ours[2].clone()])
            .expect_err("root of another chain");
        let workload = ca.server("spiffe://airlane.local/ns/default/sa/pay", OPERATOR_DNS_NAME).chain;
        check(pinned(&ca), &workload).expect_err("a workload's identity");
        let renamed = ca.server(OPERATOR, "elsewhere").chain;
        check(pinned(&ca), &renamed).expect_err("another name");
    }
}
