package rest

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/store"
)

const (
	headerIdempotencyKey = "Idempotency-Key"
	headerReplay         = "Idempotent-Replay" // "true" on an answer that is told again
	idempotencyTime      = 24 * time.Hour
	sweepEvery           = 64 // requests with a key, between removals of what has expired
)

var idempotencyParam = &huma.Param{
	Name: headerIdempotencyKey, In: "header",
	Description: "A value of your own, new for each thing you want done. Sent again within 24 hours with the same request, the first " +
		"answer comes again and nothing is done twice.",
	Schema: &huma.Schema{Type: huma.TypeString},
}

// idempotent makes a POST safe to repeat. The key is reserved before the handler
// runs and the answer remembered after it, both on disk:
//
//   - the same key and request: the same answer again;
//   - the same key, another request: Conflict;
//   - a duplicate while the first is at work: Conflict;
//   - the first failed: it has changed nothing, the key is free again;
//   - the hub stopped between the reservation and the answer: whether the change
//     was made is not known, so a repetition is refused as Conflict, and whoever
//     asks looks for the thing and takes a new key.
//
// Answers may hold secrets (a join token's, an endpoint's keys), so they are kept
// sealed under a key derived from the caller's token and the idempotency key.
// The hub keeps neither of the two, so the database alone opens none of them.
func (s *server) idempotent(c huma.Context, next func(huma.Context)) {
	key := c.Header(headerIdempotencyKey)
	if key == "" {
		next(c)
		return
	}
	if len(key) > 255 {
		fail(c, atelier.Errorf(atelier.Invalid, "the idempotency key has %d bytes, at most 255 are taken", len(key)).WithField(headerIdempotencyKey))
		return
	}
	a, seal, err := s.reserve(c, key)
	if err != nil {
		fail(c, err)
		return
	}
	if a.Status != 0 {
		if err := replay(c, a, seal); err != nil {
			fail(c, err)
		}
		return
	}
	rec := &recorder{humaContext: c, header: http.Header{}}
	done := false
	defer func() {
		if !done { // the handler panicked
			_ = s.settle(c.Context(), a, rec, seal) // the panic is what gets told
		}
	}()
	next(rec)
	done = true
	if err := s.settle(c.Context(), a, rec, seal); err != nil {
		fail(c, err)
		return
	}
	rec.send()
}

// reserve returns what is remembered under key, or a reservation (with status 0)
// that this request has just made.
func (s *server) reserve(c huma.Context, key string) (store.Answer, cipher.AEAD, error) {
	ctx := c.Context()
	p := access.PrincipalFrom(ctx)
	url := c.URL()
	request := sha256.New()
	fmt.Fprintf(request, "%s\n%s\n", c.Method(), url.RequestURI())
	request.Write(bodyOf(c))
	now := s.now()
	a := store.Answer{
		Actor: string(p.Kind) + ":" + p.ID, Key: keyName(key), Request: hex.EncodeToString(request.Sum(nil)),
		Header: json.RawMessage(`{"boot":"` + s.boot + `"}`), Now: now, Expires: now.Add(idempotencyTime),
	}
	seal, err := sealer(secretFrom(ctx), key)
	if err != nil {
		return a, nil, err
	}
	var held store.Answer
	err = s.store.Update(ctx, access.By(ctx), func(tx store.Tx) error {
		held = store.Answer{}
		if s.reservations.Add(1)%sweepEvery == 0 {
			if err := tx.Forget(now); err != nil {
				return err
			}
		}
		var err error
		if held, err = tx.Recall(a.Actor, a.Key, now); atelier.CodeOf(err) != atelier.NotFound {
			return err
		}
		return tx.Remember(a)
	})
	switch {
	case err != nil || held.Key == "":
		return a, seal, err
	case held.Request != a.Request:
		return a, nil, atelier.Errorf(atelier.Conflict, "this idempotency key was used for another request").
			WithField(headerIdempotencyKey).WithRemedy("Take a new key for each thing you want done.")
	case held.Status == 0:
		return a, nil, s.unanswered(held)
	}
	return held, seal, nil
}

// keyName is what a key is remembered under: the key itself opens the answer.
func keyName(key string) string {
	name := sha256.Sum256([]byte("atelier idempotency key\x00" + key))
	return hex.EncodeToString(name[:])
}

// unanswered tells why a reserved key has no answer.
func (s *server) unanswered(held store.Answer) error {
	var mark struct {
		Boot string `json:"boot"`
	}
	if err := json.Unmarshal(held.Header, &mark); err == nil && mark.Boot == s.boot {
		return atelier.Errorf(atelier.Conflict, "a request with this idempotency key is being worked on").
			WithField(headerIdempotencyKey).WithRemedy("Wait for its answer, then send it again.")
	}
	return atelier.Errorf(atelier.Conflict, "the hub stopped while it worked on a request with this idempotency key; whether it was carried out is not known").
		WithField(headerIdempotencyKey).WithRemedy("Look whether it was, and if not send it with a new key.")
}

// settle remembers the answer of a request that succeeded, and frees the key of
// one that failed. The caller may have gone meanwhile; that changes nothing.
func (s *server) settle(ctx context.Context, a store.Answer, rec *recorder, seal cipher.AEAD) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	a.Status = rec.status
	a.Now = s.now()
	if a.Status < 200 || a.Status >= 300 {
		a.Status, a.Expires = http.StatusInternalServerError, a.Now
	} else {
		header, err := json.Marshal(rec.header)
		if err != nil {
			return err
		}
		nonce := make([]byte, seal.NonceSize())
		_, _ = rand.Read(nonce) // never fails since Go 1.24
		a.Header, a.Body = header, seal.Seal(nonce, nonce, rec.body.Bytes(), []byte(a.Request))
	}
	return s.store.Update(ctx, access.By(ctx), func(tx store.Tx) error { return tx.Remember(a) })
}

// replay tells a remembered answer again.
func replay(c huma.Context, a store.Answer, seal cipher.AEAD) error {
	var header http.Header
	if err := json.Unmarshal(a.Header, &header); err != nil {
		return atelier.Errorf(atelier.Corrupt, "the remembered answer cannot be read: %w", err)
	}
	n := seal.NonceSize()
	if len(a.Body) < n {
		return atelier.Errorf(atelier.Corrupt, "the remembered answer has %d bytes, too few", len(a.Body))
	}
	body, err := seal.Open(nil, a.Body[:n], a.Body[n:], []byte(a.Request))
	if err != nil {
		return atelier.Errorf(atelier.Corrupt, "the remembered answer cannot be opened: %w", err)
	}
	rec := &recorder{humaContext: c, header: header, status: a.Status, body: *bytes.NewBuffer(body)}
	rec.header.Set(headerReplay, "true")
	rec.send()
	return nil
}

// sealer derives the cipher that answers are kept under.
func sealer(token, key string) (cipher.AEAD, error) {
	k, err := hkdf.Key(sha256.New, []byte(token), []byte(key), "atelier idempotent answer", 32)
	if err != nil {
		return nil, fmt.Errorf("derive the key of an answer: %w", err)
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, fmt.Errorf("derive the key of an answer: %w", err)
	}
	return cipher.NewGCM(block)
}
