package rest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/store"
)

func TestIdempotency(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	body := map[string]any{"name": "lab"}
	first := h.do(h.admin, "POST", "/v1/workspaces", body, "Idempotency-Key: k1")
	first.into(t, 201, nil)
	again := h.do(h.admin, "POST", "/v1/workspaces", body, "Idempotency-Key: k1")
	again.into(t, 201, nil)
	if !bytes.Equal(first.body, again.body) || again.header.Get("ETag") != first.header.Get("ETag") ||
		again.header.Get("Content-Type") != first.header.Get("Content-Type") || again.header.Get(headerReplay) != "true" || first.header.Get(headerReplay) != "" {
		t.Errorf("first %v %s\nagain %v %s", first.header, first.body, again.header, again.body)
	}
	if first.header.Get(headerRequest) == again.header.Get(headerRequest) {
		t.Error("both answers carry one request's id")
	}
	h.do(h.admin, "POST", "/v1/workspaces", map[string]any{"name": "other"}, "Idempotency-Key: k1").fails(t, atelier.Conflict)
	h.do(h.admin, "POST", "/v1/runtimes", body, "Idempotency-Key: k1").fails(t, atelier.Conflict)
	h.do(h.admin, "POST", "/v1/workspaces", body, "Idempotency-Key: k2").fails(t, atelier.Exists)

	// Another caller's key is another key.
	other := h.token("other", access.Admin, "")
	h.do(other, "POST", "/v1/workspaces", map[string]any{"name": "theirs"}, "Idempotency-Key: k1").into(t, 201, nil)

	// A failure has changed nothing, so the key is free again.
	h.do(h.admin, "POST", "/v1/workspaces/lab/models", map[string]any{"name": "No"}, "Idempotency-Key: k3").fails(t, atelier.Invalid)
	h.do(h.admin, "POST", "/v1/workspaces/lab/models", map[string]any{"name": "yes"}, "Idempotency-Key: k3").into(t, 201, nil)

	h.do(h.admin, "POST", "/v1/workspaces", body, "Idempotency-Key: "+string(bytes.Repeat([]byte("k"), 256))).fails(t, atelier.Invalid)
}

// TestIdempotencyAtOnce sends one request many times at once: it is carried out
// once, and nobody is told something else.
func TestIdempotencyAtOnce(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	started, release := make(chan struct{}), make(chan struct{})
	runs := 0
	register(h.server, h.server.api, operation{ID: "slow", Method: "POST", Path: "/slow", Summary: "x", Tag: "x", Verb: access.HubShow, Kind: "hub", Status: 201},
		func(context.Context, *struct{}) (*answer[health], error) {
			runs++
			close(started)
			<-release
			return &answer[health]{health{"done"}}, nil
		})
	var wg sync.WaitGroup
	var first reply
	wg.Go(func() { first, _ = try(h, h.admin, "POST", "/slow", nil, "Idempotency-Key: k") })
	<-started
	var others sync.WaitGroup
	for range 5 {
		others.Go(func() {
			r, err := try(h, h.admin, "POST", "/slow", nil, "Idempotency-Key: k")
			if err != nil || r.status != 409 {
				t.Errorf("a duplicate in flight: %d %v", r.status, err)
			}
		})
	}
	others.Wait()
	close(release)
	wg.Wait()
	first.into(t, 201, nil)
	again := h.do(h.admin, "POST", "/slow", nil, "Idempotency-Key: k")
	if again.into(t, 201, nil); runs != 1 || !bytes.Equal(again.body, first.body) {
		t.Errorf("ran %d times; %s, then %s", runs, first.body, again.body)
	}
}

// TestIdempotencyAfterCrash repeats a request whose hub stopped before it answered.
func TestIdempotencyAfterCrash(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	started, release := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(release) })
	hang := func(context.Context, *struct{}) (*empty, error) {
		close(started)
		<-release
		return nil, nil
	}
	op := operation{ID: "hang", Method: "POST", Path: "/hang", Summary: "x", Tag: "x", Verb: access.HubShow, Kind: "hub"}
	register(h.server, h.server.api, op, hang)
	go func() { _, _ = try(h, h.admin, "POST", "/hang", nil, "Idempotency-Key: k") }()
	<-started
	p := h.do(h.admin, "POST", "/hang", nil, "Idempotency-Key: k").fails(t, atelier.Conflict)
	h.serve(slog.New(slog.DiscardHandler)) // the hub, started again
	register(h.server, h.server.api, op, func(context.Context, *struct{}) (*empty, error) {
		t.Error("it was carried out again")
		return nil, nil
	})
	q := h.do(h.admin, "POST", "/hang", nil, "Idempotency-Key: k").fails(t, atelier.Conflict)
	if p.Detail == q.Detail || q.Remedy == "" {
		t.Errorf("in flight: %q; after the hub stopped: %q", p.Detail, q.Detail)
	}
}

// TestIdempotencyPanic frees the key of a request that broke the hub.
func TestIdempotencyPanic(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	fail := true
	register(h.server, h.server.api, operation{ID: "panic", Method: "POST", Path: "/panic", Summary: "x", Tag: "x", Verb: access.HubShow, Kind: "hub"},
		func(context.Context, *struct{}) (*empty, error) {
			if fail {
				panic("oh")
			}
			return nil, nil
		})
	h.do(h.admin, "POST", "/panic", nil, "Idempotency-Key: k").fails(t, atelier.Internal)
	fail = false
	h.do(h.admin, "POST", "/panic", nil, "Idempotency-Key: k").into(t, 204, nil)
}

// TestIdempotencyKeepsSecrets looks for a secret in the database.
func TestIdempotencyKeepsSecrets(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	var made, again IssuedToken
	h.do(h.admin, "POST", "/v1/tokens", newToken{Name: "ci", Role: "viewer"}, "Idempotency-Key: the-key").into(t, 201, &made)
	h.do(h.admin, "POST", "/v1/tokens", newToken{Name: "ci", Role: "viewer"}, "Idempotency-Key: the-key").into(t, 201, &again)
	if made.Secret == "" || again.Secret != made.Secret {
		t.Errorf("first %q, again %q", made.Secret, again.Secret)
	}
	var answers []store.Answer
	principal, err := h.access.Authenticate(t.Context(), h.admin)
	if err != nil {
		t.Fatal(err)
	}
	err = h.store.View(t.Context(), func(tx store.Tx) error {
		a, err := tx.Recall("token:"+principal.ID, keyName("the-key"), time.Now())
		answers = append(answers, a)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(answers[0].Body) == 0 {
		t.Error("nothing is remembered")
	}
	for _, secret := range []string{made.Secret, h.admin, "the-key"} {
		if kept := fmt.Sprintf("%s %s %s", answers[0].Body, answers[0].Header, answers[0].Key); bytes.Contains([]byte(kept), []byte(secret)) {
			t.Errorf("the secret %q is kept in clear", secret)
		}
	}
	// Whoever has the database but not the token opens nothing.
	seal, err := sealer("atl_another", "the-key")
	if err != nil {
		t.Fatal(err)
	}
	rec := &recorder{header: http.Header{}}
	if err := replay(rec, answers[0], seal); atelier.CodeOf(err) != atelier.Corrupt {
		t.Errorf("opened without the token: %v", err)
	}
}
