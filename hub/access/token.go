package access

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// The roles of an access token.
const (
	Admin   = "admin"   // everything
	Viewer  = "viewer"  // whatever only reads
	Builder = "builder" // claim builds of environments, and deliver what came of them
)

// A secret is secretPrefix and secretBytes of chance in base64url without
// padding. The prefix lets scanners find secrets that leaked.
const (
	secretPrefix = "atl_"
	secretBytes  = 32
)

// relSecret refers from a token to the hash of its secret, so that one look-up
// finds the token that a secret belongs to.
const relSecret = "secret"

// AccessToken is a credential for people and programs.
type AccessToken struct {
	atelier.Meta
	Role string `json:"role"` // Admin, Viewer or Builder
	// Workspace is the id of the only workspace that the token is good for; ""
	// for all of them and the hub itself.
	Workspace string     `json:"workspace,omitempty"`
	Expires   *time.Time `json:"expires,omitempty"` // nil for never
	// Hash is the SHA-256 of the secret, in hex; the secret itself is shown once
	// and not kept. It stays in the store: what Authority returns has none.
	Hash string `json:"hash,omitempty"`
}

// Tokens are the access tokens. They belong to the hub, also those that are bound
// to a workspace.
var Tokens = store.Collection[AccessToken]{
	Kind: "access-token", Missing: "See 'atelier token list' for those that there are.",
	Meta: func(v *AccessToken) *atelier.Meta { return &v.Meta }, Quiet: true,
	Refs: func(v *AccessToken) []store.Ref { return []store.Ref{{Rel: relSecret, To: v.Hash}} },
}

// CreateToken adds the token that t describes by its Name, Role, Workspace (name
// or id) and Expires, and returns it with its secret, which nobody can read
// again. The caller has asked Authorize for TokenCreate.
func (a *Authority) CreateToken(ctx context.Context, t AccessToken) (AccessToken, string, error) {
	if err := a.check(t); err != nil {
		return t, "", err
	}
	secret, hash := newSecret()
	made := t
	err := a.store.Update(ctx, By(ctx), func(tx store.Tx) error {
		v := AccessToken{Meta: atelier.Meta{Name: t.Name}, Role: t.Role, Expires: t.Expires, Hash: hash}
		if t.Workspace != "" {
			w, err := catalog.Workspaces.Resolve(tx, "", "", t.Workspace)
			if err != nil {
				return err
			}
			v.Workspace = w.ID
		}
		var err error
		made, err = Tokens.Insert(tx, "", "", v)
		return err
	})
	if err != nil {
		return t, "", err
	}
	return shown(made), secret, nil
}

func (a *Authority) check(t AccessToken) error {
	if err := atelier.CheckName("token", t.Name); err != nil {
		return err
	}
	if t.Role != Admin && t.Role != Viewer && t.Role != Builder {
		return atelier.Errorf(atelier.Invalid, "role %.40q is none of %q, %q and %q", t.Role, Admin, Viewer, Builder).WithField("role")
	}
	if t.Expires != nil && !t.Expires.After(a.now()) {
		return atelier.Errorf(atelier.Invalid, "the token would expire at %s, which has passed", t.Expires.UTC().Format(time.RFC3339)).
			WithField("expires").WithRemedy("Give a time to come, or none.")
	}
	return nil
}

// Token returns the token with the name or id.
func (a *Authority) Token(ctx context.Context, ref string) (t AccessToken, err error) {
	err = a.store.View(ctx, func(tx store.Tx) error {
		t, err = Tokens.Resolve(tx, "", "", ref)
		return err
	})
	return shown(t), err
}

// ListTokens returns at most limit (1 to 1000) tokens after the id after, in the
// order of their ids. The caller has asked Authorize for TokenList.
func (a *Authority) ListTokens(ctx context.Context, after string, limit int) (ts []AccessToken, err error) {
	err = a.store.View(ctx, func(tx store.Tx) error {
		ts, err = Tokens.List(tx, store.Query{After: after, Limit: limit})
		return err
	})
	for i := range ts {
		ts[i] = shown(ts[i])
	}
	return ts, err
}

// RevokeToken ends the token with the name or id: its secret is worth nothing
// from now on. A revision other than 0 must be the token's. The caller has asked
// Authorize for TokenRevoke.
func (a *Authority) RevokeToken(ctx context.Context, ref string, revision int64) error {
	return a.store.Update(ctx, By(ctx), func(tx store.Tx) error {
		t, err := Tokens.Resolve(tx, "", "", ref)
		if err != nil {
			return err
		}
		return Tokens.Delete(tx, "", t.ID, revision)
	})
}

// Bootstrap makes an admin token where there is none that is good for the whole
// hub: at the first start, and for whoever holds the hub's machine when the last
// one was revoked or has expired. It hands the secret to show before it stores the token,
// and stores none where show fails: a hub that is cut off in between shows
// another one when it starts again, where one that was stored and never shown would
// lock everybody out.
func (a *Authority) Bootstrap(ctx context.Context, show func(secret string) error) error {
	ctx = WithPrincipal(ctx, Principal{Kind: System})
	secret, hash := newSecret()
	show = once(show)
	return a.store.Update(ctx, By(ctx), func(tx store.Tx) error {
		names := map[string]bool{}
		usable := false
		err := Tokens.Each(tx, store.Query{}, func(t AccessToken) error {
			names[t.Name] = true
			usable = usable || t.Role == Admin && t.Workspace == "" && !a.expired(t)
			return nil
		})
		if err != nil || usable {
			return err
		}
		if err := show(secret); err != nil {
			return err
		}
		id := atelier.NewID()
		name := "admin"
		if names[name] {
			name += "-" + id[len(id)-8:]
		}
		_, err = Tokens.Insert(tx, "", "", AccessToken{Meta: atelier.Meta{ID: id, Name: name}, Role: Admin, Hash: hash})
		return err
	})
}

// once returns a function that calls show the first time only: a transaction may
// be tried again.
func once(show func(string) error) func(string) error {
	var first sync.Once
	var err error
	return func(secret string) error {
		first.Do(func() { err = show(secret) })
		return err
	}
}

// Authenticate returns whose access token secret is. Unauthenticated where it is
// nobody's, and where the token has expired.
func (a *Authority) Authenticate(ctx context.Context, secret string) (Principal, error) {
	random, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(secret, secretPrefix))
	if err != nil || len(random) != secretBytes || !strings.HasPrefix(secret, secretPrefix) {
		return Principal{}, atelier.Errorf(atelier.Unauthenticated, "the credential does not have the form of an access token").
			WithRemedy("An access token begins with %s and has %d characters.", secretPrefix, len(secretPrefix)+base64.RawURLEncoding.EncodedLen(secretBytes))
	}
	hash := hashOf(secret)
	var found []AccessToken
	err = a.store.View(ctx, func(tx store.Tx) error {
		found, err = Tokens.List(tx, store.Query{Rel: relSecret, To: hash, Limit: 1})
		return err
	})
	if err != nil {
		return Principal{}, err
	}
	if len(found) == 0 || subtle.ConstantTimeCompare([]byte(found[0].Hash), []byte(hash)) != 1 {
		return Principal{}, atelier.Errorf(atelier.Unauthenticated, "the access token is not known; it may have been revoked").
			WithRemedy("Ask an administrator of the hub for a new one.")
	}
	t := found[0]
	if a.expired(t) {
		return Principal{}, atelier.Errorf(atelier.Unauthenticated, "the access token %s has expired", t.Name).
			WithRemedy("Ask an administrator of the hub for a new one.")
	}
	return t.principal(), nil
}

// Holder returns whom the access token with the id stands for, for those that were
// given something in its place. Unauthenticated once it was revoked or has expired.
func (a *Authority) Holder(ctx context.Context, id string) (Principal, error) {
	var t AccessToken
	err := a.store.View(ctx, func(tx store.Tx) (err error) {
		t, err = Tokens.Get(tx, "", id)
		return err
	})
	if code := atelier.CodeOf(err); code == atelier.NotFound || err == nil && a.expired(t) {
		return Principal{}, atelier.Errorf(atelier.Unauthenticated, "the access token was revoked, or has expired").
			WithRemedy("Ask an administrator of the hub for a new one.")
	}
	if err != nil {
		return Principal{}, err
	}
	return t.principal(), nil
}

func (t AccessToken) principal() Principal {
	return Principal{Kind: User, ID: t.ID, Name: t.Name, Workspace: t.Workspace, Role: t.Role}
}

func (a *Authority) expired(t AccessToken) bool {
	return t.Expires != nil && !a.now().Before(*t.Expires)
}

// shown returns t as callers may see it.
func shown(t AccessToken) AccessToken {
	t.Hash = ""
	return t
}

func newSecret() (secret, hash string) {
	random := make([]byte, secretBytes)
	_, _ = rand.Read(random) // never fails since Go 1.24; it ends the program itself
	secret = secretPrefix + base64.RawURLEncoding.EncodeToString(random)
	return secret, hashOf(secret)
}

func hashOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}
