package trust

import (
	"encoding/base64"
	"encoding/json"
	"strconv"

	atelier "github.com/atelier-edge/atelier"
)

// Limits of an envelope. A payload that is larger belongs into the content
// store, with its digest in the envelope.
const (
	MaxEnvelope   = 4 << 20 // bytes of JSON
	maxSignatures = 16
	maxTypeLen    = 256
)

// envelope is the JSON form that DSSE defines:
// https://github.com/secure-systems-lab/dsse/blob/master/envelope.md.
type envelope struct {
	Payload     string      `json:"payload"`
	PayloadType string      `json:"payloadType"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

// Sign returns a DSSE envelope around payload with one signature of each signer.
func Sign(payloadType string, payload []byte, signers ...Signer) ([]byte, error) {
	if len(signers) == 0 || len(signers) > maxSignatures {
		return nil, atelier.Errorf(atelier.Internal, "an envelope was to be signed by %d keys, expected 1 to %d", len(signers), maxSignatures)
	}
	if payloadType == "" || len(payloadType) > maxTypeLen {
		return nil, atelier.Errorf(atelier.Internal, "an envelope's payload type has %d bytes, expected 1 to %d", len(payloadType), maxTypeLen)
	}
	message := preAuth(payloadType, payload)
	env := envelope{Payload: base64.StdEncoding.EncodeToString(payload), PayloadType: payloadType}
	for _, s := range signers {
		sig, err := s.sign(message)
		if err != nil {
			return nil, atelier.Errorf(atelier.Internal, "sign with key %s: %w", s.public.ID(), err)
		}
		env.Signatures = append(env.Signatures, signature{s.public.ID(), base64.StdEncoding.EncodeToString(sig)})
	}
	raw, err := json.Marshal(env)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode an envelope: %w", err)
	}
	if len(raw) > MaxEnvelope {
		return nil, atelier.Errorf(atelier.TooLarge, "the envelope has %d bytes, at most %d are allowed", len(raw), MaxEnvelope)
	}
	return raw, nil
}

// Open verifies that at least one of keys signed the envelope raw, and returns
// what it carries. The payload type is signed along: branch on it before
// reading the payload. The error is an *Error with ReasonKeyUnknown where none
// of keys claims to have signed, ReasonSignatureInvalid for everything else.
func Open(raw []byte, keys KeySet) (payloadType string, payload []byte, err error) {
	s, err := parse(raw)
	if err != nil {
		return "", nil, err
	}
	if err := s.verify(keys, 1); err != nil {
		return "", nil, err
	}
	return s.payloadType, s.payload, nil
}

// Peek returns what the envelope raw carries and verifies nothing. It is for
// payloads that prove themselves otherwise, such as a list of envelopes, and for
// what was verified before it was saved.
func Peek(raw []byte) (payloadType string, payload []byte, err error) {
	s, err := parse(raw)
	return s.payloadType, s.payload, err
}

// signed is an envelope whose encoding was taken apart and whose signatures were
// not looked at yet.
type signed struct {
	payloadType string
	payload     []byte
	signatures  map[string][]byte // by key id
}

func parse(raw []byte) (signed, error) {
	var s signed
	if len(raw) > MaxEnvelope {
		return s, malformed("the envelope has %d bytes, expected at most %d", len(raw), MaxEnvelope)
	}
	var env envelope
	if err := json.Unmarshal(raw, &env); err != nil {
		return s, malformed("the envelope is not the JSON of a DSSE envelope: %w", err)
	}
	if env.PayloadType == "" || len(env.PayloadType) > maxTypeLen {
		return s, malformed("the envelope's payload type has %d bytes, expected 1 to %d", len(env.PayloadType), maxTypeLen)
	}
	if n := len(env.Signatures); n == 0 || n > maxSignatures {
		return s, malformed("the envelope has %d signatures, expected 1 to %d", n, maxSignatures)
	}
	s.payloadType = env.PayloadType
	s.signatures = make(map[string][]byte, len(env.Signatures))
	var err error
	if s.payload, err = decodeBase64(env.Payload); err != nil {
		return s, malformed("the envelope's payload is not base64: %w", err)
	}
	for _, sig := range env.Signatures {
		if s.signatures[sig.KeyID], err = decodeBase64(sig.Sig); err != nil {
			return s, malformed("a signature of the envelope is not base64: %w", err)
		}
	}
	return s, nil
}

// verify checks that at least threshold different keys signed. A signature that
// does not verify counts for nothing, and spoils nothing.
func (s *signed) verify(keys KeySet, threshold int) error {
	message := preAuth(s.payloadType, s.payload)
	claimed, valid := 0, 0
	for id, sig := range s.signatures {
		key, known := keys[id]
		if !known {
			continue
		}
		claimed++
		if key.verify(message, sig) {
			valid++
		}
	}
	switch {
	case valid >= max(threshold, 1):
		return nil
	case claimed == 0:
		return unknownKey("%s is signed by none of the %d keys that are trusted for it", s.payloadType, len(keys))
	default:
		return unverified("%s carries %d valid signatures, expected %d", s.payloadType, valid, max(threshold, 1))
	}
}

// decodeBase64 takes both alphabets, as DSSE asks of those who verify.
func decodeBase64(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err == nil {
		return b, nil
	}
	if b, urlErr := base64.URLEncoding.DecodeString(s); urlErr == nil {
		return b, nil
	}
	return nil, err
}

// preAuth is DSSE's pre-authentication encoding, the bytes that are signed:
// https://github.com/secure-systems-lab/dsse/blob/master/protocol.md.
func preAuth(payloadType string, payload []byte) []byte {
	b := make([]byte, 0, len(payload)+len(payloadType)+48)
	b = append(b, "DSSEv1 "...)
	b = strconv.AppendInt(b, int64(len(payloadType)), 10)
	b = append(b, ' ')
	b = append(b, payloadType...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(payload)), 10)
	b = append(b, ' ')
	return append(b, payload...)
}
