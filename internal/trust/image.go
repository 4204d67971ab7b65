package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// What statements about images are, in the words of in-toto's attestation framework
// and of Sigstore's cosign: https://github.com/in-toto/attestation/tree/main/spec/v1.
const (
	// TypeStatement is the payload type of an envelope that carries a statement.
	TypeStatement = "application/vnd.in-toto+json"
	// PredicateSigned is the predicate of a statement that says no more than that the
	// image is signed.
	PredicateSigned = "https://sigstore.dev/cosign/sign/v1"

	statementType = "https://in-toto.io/Statement/v1"
	// maxSubjects bounds the images that one statement is about.
	maxSubjects = 64
)

// Statement says something about images: an in-toto statement.
type Statement struct {
	Type          string          `json:"_type"`
	Subject       []Subject       `json:"subject"`
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

// Subject is what a statement is about: content with digests by algorithm, in hexadecimal digits.
type Subject struct {
	Name   string            `json:"name,omitempty"`
	Digest map[string]string `json:"digest"`
}

// NewImageKey makes a key that signs images: ECDSA P-256.
func NewImageKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "make a key for images: %w", err)
	}
	return key, nil
}

// SignStatement returns an envelope in which s says the predicate, a JSON object, about
// the image whose manifest has the digest.
func SignStatement(manifest atelier.Digest, predicateType string, predicate json.RawMessage, s Signer) ([]byte, error) {
	algorithm, hexa, _ := strings.Cut(string(manifest), ":")
	payload, err := json.Marshal(Statement{
		Type: statementType, Subject: []Subject{{Digest: map[string]string{algorithm: hexa}}},
		PredicateType: predicateType, Predicate: predicate,
	})
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode a statement: %w", err)
	}
	return Sign(TypeStatement, payload, s)
}

// SignImage returns the envelope that VerifyImage takes as the signature of the image
// whose manifest has the digest. cosign takes it too, in a Sigstore bundle.
func SignImage(manifest atelier.Digest, s Signer) ([]byte, error) {
	return SignStatement(manifest, PredicateSigned, json.RawMessage("{}"), s)
}

// VerifyImage checks that one of keys signed the image whose manifest is the given
// bytes: the envelope is what SignImage returned for its digest. It needs no network.
// The error is an *Error, with ReasonImageUnsigned where there is no envelope and
// ReasonImageSignatureWrong for everything else; nothing of the image may be started then.
//
// What the manifest names is named by digests: whoever starts the image must have
// verified these against the manifest.
func VerifyImage(manifest, envelope []byte, keys KeySet) error {
	digest := atelier.DigestOf(manifest)
	if len(envelope) == 0 {
		return &Error{atelier.ReasonImageUnsigned, atelier.Errorf(atelier.Unauthenticated, "the image %s carries no signature", digest).
			WithRemedy("Sign it with 'atelier image sign', and deploy again.")}
	}
	wrong := func(format string, args ...any) error {
		return &Error{atelier.ReasonImageSignatureWrong, atelier.Errorf(atelier.Unauthenticated, "the signature of the image "+string(digest)+" "+format, args...).
			WithRemedy("Sign the image with 'atelier image sign', and deploy again.")}
	}
	st, err := OpenStatement(envelope, keys)
	if err != nil {
		return wrong("is not by a key that is trusted for images: %w", err)
	}
	if st.PredicateType != PredicateSigned {
		return wrong("is a statement of another kind, %q", clip(st.PredicateType))
	}
	for _, s := range st.Subject {
		if "sha256:"+s.Digest["sha256"] == string(digest) {
			return nil
		}
	}
	return wrong("is that of another image")
}

// OpenStatement verifies that at least one of keys signed the statement in the envelope,
// and returns it. Errors are those of Open.
func OpenStatement(envelope []byte, keys KeySet) (Statement, error) {
	payloadType, payload, err := Open(envelope, keys)
	if err != nil {
		return Statement{}, err
	}
	if payloadType != TypeStatement {
		return Statement{}, malformed("the envelope holds %s, expected %s", clip(payloadType), TypeStatement)
	}
	var st Statement
	if err := json.Unmarshal(payload, &st); err != nil {
		return Statement{}, malformed("the statement cannot be read: %w", err)
	}
	if st.Type != statementType || len(st.Subject) == 0 || len(st.Subject) > maxSubjects {
		return Statement{}, malformed("the statement is of type %q about %d images, expected %q about 1 to %d",
			clip(st.Type), len(st.Subject), statementType, maxSubjects)
	}
	return st, nil
}
