use super::{
    authority::{parse, validity},
    *,
};
use crate::private_file::private_dir;
use airlane_core::pki::BACK_DATED;
use airlane_wire::join::OPERATOR_DNS_NAME;
use rcgen::PublicKeyData as _;
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use std::os::unix::fs::PermissionsExt as _;
use tempfile::TempDir;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().expect("a time")
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("airlane.local").expect("a trust domain")
}

fn pay() -> Identity {
    "spiffe://airlane.local/ns/shop/sa/pay".parse().expect("an identity")
}

fn instance() -> InstanceId {
    InstanceId::parse("pay-v1-abcd").expect("an instance")
}

fn open(dir: &TempDir, now: Timestamp) -> Result<Ca, CaError> {
    Ca::open(dir.path(), trust_domain(), DAY, now)
}

fn new_ca() -> (TempDir, Ca) {
    let dir = tempfile::tempdir().expect("tempdir");
    let ca = open(&dir, now()).expect("opened");
    (dir, ca)
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().expect("ASCII"))
}

fn request_with(key: &KeyPair, edit: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(&pay().to_string())];
    edit(&mut params);
    params.serialize_request(key).expect("a request").der().to_vec()
}

fn request(edit: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    request_with(&KeyPair::generate().expect("a key"), edit)
}

fn check_refused(what: &str, request: &[u8], expected: &Refusal) {
    match Ca::admit(request, pay()) {
        Err(refusal) => assert_eq!(refusal, *expected, "{what}"),
        Ok(_) => panic!("{what} is admitted"),
    }
}

fn sign(ca: &Ca, request: &[u8], now: Timestamp) -> Result<Issued, SignError> {
    let admitted = Ca::admit(request, pay()).expect("admitted");
    ca.sign(&admitted, &instance(), now)
}

fn certs(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(|cert| cert.expect("a certificate")).collect()
}

#[test]
fn a_leaf_says_who_and_which_and_may_not_sign() {
    let (_dir, ca) = new_ca();
    let key = KeyPair::generate().expect("a key");
    let issued = sign(&ca, &request_with(&key, |_| {}), now()).expect("signed");
    let chain = certs(&issued.chain_pem);
    let [leaf, intermediate] = &chain[..] else { panic!("{} certificates", chain.len()) };
    let (leaf, intermediate) = (parse(leaf).expect("leaf"), parse(intermediate).expect("intermediate"));
    leaf.verify_signature(Some(intermediate.public_key())).expect("signed by the intermediate");
    let root = ca.root();
    intermediate.verify_signature(Some(parse(&root).expect("root").public_key())).expect("by the root");
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    let san = leaf.subject_alternative_name().expect("once").expect("there");
    assert!(san.critical, "the subject is empty");
    let uri = pay().to_string();
    assert_eq!(san.value.general_names, [GeneralName::URI(&uri), GeneralName::DNSName("pay-v1-abcd")]);
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().expect("once").expect("there").value;
    assert!(usage.digital_signature() && usage.flags == 1, "{usage:?}");
    let extended = leaf.extended_key_usage().expect("once").expect("there").value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let (not_before, not_after) = validity(&leaf);
    assert_eq!(not_before, now() - BACK_DATED);
    assert_eq!((not_after, issued.not_after), (now() + DAY, now() + DAY));
    assert!(issued.renew_at > now() + DAY * 2 / 5 && issued.renew_at < now() + DAY * 3 / 5);
    assert_eq!(issued.serial.len(), 32);
    assert_eq!(leaf.raw_serial_as_string().replace(':', ""), issued.serial);
}

#[test]
fn a_requests_wishes_beyond_its_key_are_not_signed() {
    let (_dir, ca) = new_ca();
    let request = request(|params| {
        params.distinguished_name.push(DnType::CommonName, "root");
        params.not_after = OffsetDateTime::from_unix_timestamp(7_000_000_000).expect("in range");
    });
    let issued = sign(&ca, &request, now()).expect("signed");
    let chain = certs(&issued.chain_pem);
    let leaf = parse(&chain[0]).expect("leaf");
    assert_eq!(leaf.subject().iter().count(), 0);
    assert_eq!(validity(&leaf).1, now() + DAY);
}

#[test]
fn requests_that_ask_for_something_else_are_refused() {
    let names = Refusal::Names { expected: pay() };
    let other = Refusal::OtherIdentity { expected: pay() };
    let san = |names: Vec<SanType>| request(|params| params.subject_alt_names = names);
    let own = || uri(&pay().to_string());
    let dns = |name: &str| SanType::DnsName(name.to_owned().try_into().expect("ASCII"));
    check_refused("no SAN", &san(vec![]), &names);
    check_refused("a DNS SAN", &san(vec![dns("pay-v1-abcd")]), &names);
    check_refused("a wildcard", &san(vec![dns("*")]), &names);
    check_refused("URI and DNS", &san(vec![own(), dns("orders-v1-abcd")]), &names);
    check_refused("URI and IP", &san(vec![own(), SanType::IpAddress([127, 0, 0, 1].into())]), &names);
    check_refused("two URIs", &san(vec![own(), uri("spiffe://airlane.local/ns/shop/sa/x")]), &names);
    check_refused("the URI twice", &san(vec![own(), own()]), &names);
    check_refused("another service", &san(vec![uri("spiffe://airlane.local/ns/shop/sa/orders")]), &other);
    check_refused("a NUL", &san(vec![uri("spiffe://airlane.local/ns/shop/sa/pay\0")]), &other);
    check_refused("dots", &san(vec![uri("spiffe://airlane.local/ns/shop/sa/x/../pay")]), &other);
    check_refused("percent", &san(vec![uri("spiffe://airlane.local/ns/shop/sa%2Fpay")]), &other);
    check_refused("upper case", &san(vec![uri("spiffe://AIRLANE.local/ns/shop/sa/pay")]), &other);
    let long = format!("spiffe://airlane.local/ns/shop/sa/{}", "x".repeat(2100));
    check_refused("a long URI", &san(vec![uri(&long)]), &Refusal::LongUri);
    let huge = format!("spiffe://airlane.local/ns/shop/sa/{}", "x".repeat(4096));
    check_refused("a long request", &san(vec![uri(&huge)]), &Refusal::TooLong);
}

#[test]
fn requests_for_more_than_a_leaf_are_refused() {
    let extension = |oid: &[u64], content: &[u8]| {
        let extension = rcgen::CustomExtension::from_oid_content(oid, content.to_vec());
        request(|params| params.custom_extensions.push(extension))
    };
    // BasicConstraints with CA:TRUE: SEQUENCE { BOOLEAN TRUE }.
    let authority = extension(&[2, 5, 29, 19], &[0x30, 3, 1, 1, 0xff]);
    check_refused("CA:TRUE", &authority, &Refusal::Authority);
    let may_sign = request(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    check_refused("keyCertSign", &may_sign, &Refusal::Authority);
    let code = request(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]);
    check_refused("code signing", &code, &Refusal::Extension);
    check_refused("an unknown extension", &extension(&[1, 2, 3, 4], &[5, 0]), &Refusal::Extension);
    let usages = request(|params| {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    });
    let (_dir, ca) = new_ca();
    sign(&ca, &usages, now()).expect("what a leaf has may be asked for");
}

#[test]
fn other_keys_and_bad_signatures_are_refused() {
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        check_refused("another key", &request_with(&key, |_| {}), &Refusal::Key);
    }
    let rsa_1024 = pem::parse(RSA_1024_REQUEST).expect("PEM");
    check_refused("RSA, 1024 bits", rsa_1024.contents(), &Refusal::Key);
    let mut forged = request(|_| {});
    let last = forged.len() - 1;
    forged[last] ^= 1;
    check_refused("a forged signature", &forged, &Refusal::Signature);
    // Somebody else's public key in a request that is signed with one's own.
    let (mine, theirs) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
    let request = request_with(&mine, |_| {});
    let at = request.windows(64).position(|w| w == &mine.public_key_raw()[1..]).expect("its key");
    let mut stolen = request;
    stolen[at..at + 64].copy_from_slice(&theirs.public_key_raw()[1..]);
    check_refused("a stolen key", &stolen, &Refusal::Signature);
}

#[test]
fn no_bytes_make_the_reader_fail_otherwise() {
    let (_dir, ca) = new_ca();
    let key = KeyPair::generate().expect("a key");
    let good = request_with(&key, |_| {});
    check_refused("nothing", &[], &Refusal::Malformed);
    check_refused("bytes after the end", &[&good[..], &[0]].concat(), &Refusal::Malformed);
    check_refused("PEM", b"-----BEGIN CERTIFICATE REQUEST-----", &Refusal::Malformed);
    for cut in 0..good.len() {
        assert!(Ca::admit(&good[..cut], pay()).is_err(), "cut at {cut}");
    }
    for flip in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[flip / 8] ^= 1 << (flip % 8);
        // The frame around the signed part may be written in other ways; what is signed is the same.
        if let Ok(admitted) = Ca::admit(&bytes, pay()) {
            let issued = ca.sign(&admitted, &instance(), now()).expect("signed");
            let chain = certs(&issued.chain_pem);
            let leaf = parse(&chain[0]).expect("leaf");
            assert_eq!(leaf.public_key().raw, key.subject_public_key_info(), "bit {flip} changed");
        }
    }
}

#[test]
fn the_authority_is_the_same_when_opened_again() {
    let (dir, ca) = new_ca();
    let again = open(&dir, now()).expect("opened again");
    assert_eq!(again.root_fingerprint(), ca.root_fingerprint());
    assert_eq!(again.bundle_pem(), ca.bundle_pem());
    assert_eq!(again.intermediate(), ca.intermediate());
}

#[tokio::test]
async fn the_intermediate_is_renewed_at_half_life_and_never_outlives_the_root() {
    let (dir, ca) = new_ca();
    let first = ca.intermediate();
    assert_eq!(first.not_after, now() + SignedDuration::from_hours(365 * 24));
    let again = open(&dir, now() + DAY * 300).expect("opened later");
    let second = again.intermediate();
    assert_eq!(second.issued_at, now() + DAY * 300);
    assert_eq!(again.root_fingerprint(), ca.root_fingerprint());
    ca.renew_intermediate(now() + DAY * 3600).await.expect("renewed");
    assert_eq!(ca.intermediate().not_after, now() + DAY * 3650);
    let late = now() + DAY * 3650 - SignedDuration::from_hours(1);
    let issued = sign(&ca, &request(|_| {}), late).expect("signed");
    assert_eq!(issued.not_after, now() + DAY * 3650, "a leaf ends with its issuer");
    let error = sign(&ca, &request(|_| {}), now() + DAY * 3651).expect_err("ended");
    assert!(matches!(error, SignError::IntermediateNotValid { .. }), "{error}");
    let error = sign(&ca, &request(|_| {}), now()).expect_err("the clock went back");
    assert!(matches!(error, SignError::IntermediateNotValid { .. }), "{error}");
    let error = open(&dir, now() + DAY * 3651).expect_err("the root ended").to_string();
    assert!(error.contains("root.pem") && error.contains("set the clock"), "{error}");
}

#[test]
fn keys_are_private_and_in_their_files_alone() {
    let (dir, ca) = new_ca();
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    assert_eq!(mode(&dir.path().join("ca")), 0o700);
    let mut with_key: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(dir.path().join("ca")).expect("listed") {
        let path = entry.expect("an entry").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        if std::fs::read_to_string(&path).expect("read").contains("PRIVATE KEY") {
            with_key.push(path.file_name().expect("a name").to_string_lossy().into_owned());
        }
    }
    with_key.sort();
    assert_eq!(with_key, ["intermediate.key", "root.key"]);
    let leaf = ca.leaf_named(OPERATOR_DNS_NAME, now()).expect("a leaf");
    for shown in [format!("{ca:?}"), format!("{:?}", leaf.key), ca.bundle_pem()] {
        assert!(!shown.contains("PRIVATE") && shown.len() < 2000, "{shown}");
    }
}

fn check_not_opened(dir: &TempDir, says: &[&str]) {
    let error = open(dir, now()).expect_err("refused");
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let text = format!("{error}: {source}");
    for part in says {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn damaged_or_foreign_files_are_refused_with_the_mend() {
    let file = |dir: &TempDir, name: &str| dir.path().join("ca").join(name);
    let remove = |dir: &TempDir, name: &str| std::fs::remove_file(file(dir, name)).expect("removed");

    for name in ["root.key", "intermediate.key"] {
        let (dir, _ca) = new_ca();
        std::fs::set_permissions(file(&dir, name), std::fs::Permissions::from_mode(0o640)).expect("chmod");
        check_not_opened(&dir, &[name, "0640", "chmod 600"]);
    }
    let (dir, _ca) = new_ca();
    std::fs::set_permissions(dir.path().join("ca"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    check_not_opened(&dir, &["0755", "chmod 700"]);

    for name in ["root.key", "intermediate.key", "root.pem", "intermediate.pem"] {
        let (dir, _ca) = new_ca();
        remove(&dir, name);
        check_not_opened(&dir, &[name, "missing", "backup"]);
        let (dir, _ca) = new_ca();
        std::fs::write(file(&dir, name), "-----BEGIN NOTHING-----").expect("written");
        check_not_opened(&dir, &[name, "does not hold", "backup"]);
    }
    for pair in ["root", "intermediate"] {
        let ((dir, _ca), (other, _)) = (new_ca(), new_ca());
        let name = format!("{pair}.key");
        std::fs::copy(file(&other, &name), file(&dir, &name)).expect("copied");
        check_not_opened(&dir, &[&name, "is not the certificate of"]);
    }
    let ((dir, _ca), (other, _)) = (new_ca(), new_ca());
    for name in ["intermediate.key", "intermediate.pem"] {
        std::fs::copy(file(&other, name), file(&dir, name)).expect("copied");
    }
    check_not_opened(&dir, &["intermediate.pem", "not signed by the root"]);

    let (dir, _ca) = new_ca();
    let elsewhere = TrustDomain::parse("elsewhere").expect("a trust domain");
    let error = Ca::open(dir.path(), elsewhere, DAY, now()).expect_err("another trust domain").to_string();
    assert!(error.contains("another trust domain than elsewhere"), "{error}");
    for lifetime in [SignedDuration::from_secs(9), DAY + SignedDuration::from_secs(1), SignedDuration::ZERO] {
        assert!(Ca::open(dir.path(), trust_domain(), lifetime, now()).is_err(), "{lifetime}");
    }
}

#[tokio::test]
async fn a_renewal_cut_short_by_a_crash_leaves_a_whole_pair() {
    let ca_dir = |dir: &TempDir| dir.path().join("ca");
    // Crash after the new key was written: the old pair is whole.
    let (dir, ca) = new_ca();
    write_key(&ca_dir(&dir).join("intermediate.next.key"));
    assert_eq!(open(&dir, now()).expect("opened").intermediate(), ca.intermediate());
    // Crash after the new certificate was written: the new pair is whole.
    let (dir, ca) = new_ca();
    let (key, next) = (ca_dir(&dir).join("intermediate.key"), ca_dir(&dir).join("intermediate.next.key"));
    let old_key = std::fs::read(&key).expect("read");
    ca.renew_intermediate(now() + DAY).await.expect("renewed");
    std::fs::rename(&key, &next).expect("renamed");
    std::fs::write(&key, old_key).expect("written");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    let again = open(&dir, now() + DAY).expect("opened");
    assert_eq!(again.intermediate(), ca.intermediate());
    assert!(!next.exists());
    // Crash between the first key and the first certificate: nothing was signed yet.
    let dir = tempfile::tempdir().expect("tempdir");
    private_dir(&ca_dir(&dir)).expect("made");
    write_key(&ca_dir(&dir).join("root.next.key"));
    open(&dir, now()).expect("begins anew");
}

fn write_key(path: &Path) {
    let key = KeyPair::generate().expect("a key").serialize_pem();
    crate::private_file::write_private(path, &key).expect("written");
}

const RSA_1024_REQUEST: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIIBgjCB7AIBADAAMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCejP2T8w7k
CWVNxk3cwc2x1Q+u9aZaMoVMJwFiYOq1g/rXkwGZeHaMLoAds8y+NynFfkWNYH11
w7qubNX5UhnK7yQiQAPXqPLJX0mStIhf1+l4JJs1AIAEGFw06f3SWRYgX/Pn4S+Y
BUlVm+7eqIFDLx9xMGoFv6+EQpb6r3ssbQIDAQABoEMwQQYJKoZIhvcNAQkOMTQw
MjAwBgNVHREEKTAnhiVzcGlmZmU6Ly9haXJsYW5lLmxvY2FsL25zL3Nob3Avc2Ev
cGF5MA0GCSqGSIb3DQEBCwUAA4GBAI68/hHpE55pxV4lTxm93aBOVpy3fky5fnDW
HYmZLUZHAcOZkIFJmE7EM9d7D6pKuy29xOpV6Gk6WpN/7fSxNO8Tw/uKEm10coJ1
Z5cH4Rbjq9S6DypkV7+WFGkSsbGFq9bWPaF7yvUxSPJra3UJwBIhZbQkyM+cOLOh
miHrwx14
-----END CERTIFICATE REQUEST-----
";
