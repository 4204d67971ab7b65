package access_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/sqlite"
)

// clock is the tests' own.
func clock() time.Time { return time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC) }

func newStore(t *testing.T) store.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "hub.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func wantCode(t *testing.T, doing string, err error, want atelier.Code) {
	t.Helper()
	if got := atelier.CodeOf(err); got != want {
		t.Errorf("%s: got %q (%v), want code %q", doing, got, err, want)
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	now := clock()
	a := access.New(s, func() time.Time { return now })
	ctx := access.WithPrincipal(t.Context(), access.Principal{Kind: access.System})
	var workspace atelier.Workspace
	if err := s.Update(ctx, access.By(ctx), func(tx store.Tx) (err error) {
		workspace, err = catalog.Workspaces.Insert(tx, "", "", atelier.Workspace{Meta: atelier.Meta{Name: "lab"}})
		return err
	}); err != nil {
		t.Fatal(err)
	}

	expires := now.Add(time.Hour)
	made, secret, err := a.CreateToken(ctx, access.AccessToken{
		Meta: atelier.Meta{Name: "dash"}, Role: access.Viewer, Workspace: "lab", Expires: &expires,
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(secret, "atl_") || len(secret) != 47 {
		t.Errorf("the secret %q has another form than documented", secret)
	}
	if made.Hash != "" || made.Workspace != workspace.ID || made.Role != access.Viewer || made.ID == "" {
		t.Errorf("CreateToken = %+v", made)
	}
	p, err := a.Authenticate(ctx, secret)
	want := access.Principal{Kind: access.User, ID: made.ID, Name: "dash", Workspace: workspace.ID, Role: access.Viewer}
	if err != nil || p != want {
		t.Errorf("Authenticate = %+v, %v; want %+v", p, err, want)
	}
	_, other, err := a.CreateToken(ctx, access.AccessToken{Meta: atelier.Meta{Name: "other"}, Role: access.Admin})
	if err != nil || other == secret {
		t.Fatalf("a second token: %v; its secret is the first's: %v", err, other == secret)
	}

	for _, bad := range []string{
		"", "atl_", secret[4:], secret + "A", secret[:46], strings.ToUpper(secret), "ATL_" + secret[4:],
		secret[:10] + "\n" + secret[10:], "atl_" + strings.Repeat("A", 43),
	} {
		if _, err := a.Authenticate(ctx, bad); atelier.CodeOf(err) != atelier.Unauthenticated {
			t.Errorf("the secret %q is taken: %v", bad, err)
		}
	}
	list, err := a.ListTokens(ctx, "", 10)
	if err != nil || len(list) != 2 || list[0].ID != made.ID || list[0].Hash != "" {
		t.Errorf("ListTokens = %+v, %v", list, err)
	}
	if rest, err := a.ListTokens(ctx, made.ID, 10); err != nil || len(rest) != 1 || rest[0].Name != "other" {
		t.Errorf("ListTokens after the first = %+v, %v", rest, err)
	}
	for _, ref := range []string{"dash", made.ID} {
		if got, err := a.Token(ctx, ref); err != nil || got.ID != made.ID || got.Hash != "" {
			t.Errorf("Token(%s) = %+v, %v", ref, got, err)
		}
	}

	now = expires
	_, err = a.Authenticate(ctx, secret)
	wantCode(t, "Authenticate at the expiry", err, atelier.Unauthenticated)
	if _, err := a.Authenticate(ctx, other); err != nil {
		t.Errorf("a token without expiry: %v", err)
	}
	wantCode(t, "revoke another revision", a.RevokeToken(ctx, "other", 7), atelier.Stale)
	if err := a.RevokeToken(ctx, "other", 0); err != nil {
		t.Error(err)
	}
	_, err = a.Authenticate(ctx, other)
	wantCode(t, "Authenticate when revoked", err, atelier.Unauthenticated)
	wantCode(t, "revoke again", a.RevokeToken(ctx, "other", 0), atelier.NotFound)
	assertNoSecrets(t, s, secret, other)
}

// assertNoSecrets checks that neither events nor documents hold the secrets.
func assertNoSecrets(t *testing.T, s store.Store, secrets ...string) {
	t.Helper()
	var all [][]byte
	err := s.View(t.Context(), func(tx store.Tx) error {
		events, err := tx.Events(store.EventQuery{AnyWorkspace: true, Kind: access.Tokens.Kind, Limit: 1000})
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.Resource != nil {
				t.Errorf("an event of a token carries %s", e.Resource)
			}
		}
		rs, err := tx.List(store.Query{Kind: access.Tokens.Kind, Limit: 1000})
		if err != nil {
			return err
		}
		text, err := json.Marshal(rs)
		all = append(all, text)
		for _, r := range rs {
			all = append(all, r.Doc)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range all {
		for _, secret := range secrets {
			if bytes.Contains(text, []byte(secret[4:])) {
				t.Errorf("the store holds a secret: %s", text)
			}
		}
	}
}

func TestCreateTokenChecks(t *testing.T) {
	t.Parallel()
	a := access.New(newStore(t), clock)
	past := clock()
	name := func(n string) atelier.Meta { return atelier.Meta{Name: n} }
	for _, c := range []struct {
		token access.AccessToken
		want  atelier.Code
	}{
		{access.AccessToken{Meta: name("a"), Role: access.Admin}, ""},
		{access.AccessToken{Meta: name("a"), Role: access.Admin}, atelier.Exists},
		{access.AccessToken{Meta: name(""), Role: access.Admin}, atelier.Invalid},
		{access.AccessToken{Meta: name("A b"), Role: access.Admin}, atelier.Invalid},
		{access.AccessToken{Meta: name("b")}, atelier.Invalid},
		{access.AccessToken{Meta: name("b"), Role: "root"}, atelier.Invalid},
		{access.AccessToken{Meta: name("b"), Role: access.Admin, Expires: &past}, atelier.Invalid},
		{access.AccessToken{Meta: name("b"), Role: access.Admin, Workspace: "nowhere"}, atelier.NotFound},
	} {
		_, secret, err := a.CreateToken(t.Context(), c.token)
		wantCode(t, "CreateToken", err, c.want)
		if (secret == "") != (err != nil) {
			t.Errorf("CreateToken(%+v) returned a secret: %v, and %v", c.token, secret != "", err)
		}
	}
}

func TestBootstrap(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	a := access.New(s, clock)

	// Several starts at once make one token.
	var mu sync.Mutex
	var secrets []string
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			err := a.Bootstrap(t.Context(), func(secret string) error {
				mu.Lock()
				defer mu.Unlock()
				secrets = append(secrets, secret)
				return nil
			})
			if err != nil {
				t.Errorf("Bootstrap: %v", err)
			}
		})
	}
	wg.Wait()
	if len(secrets) != 1 {
		t.Fatalf("%d admin tokens were made, want 1", len(secrets))
	}
	p, err := a.Authenticate(t.Context(), secrets[0])
	if err != nil || p.Role != access.Admin || p.Workspace != "" || p.Name != "admin" {
		t.Errorf("Authenticate = %+v, %v", p, err)
	}
	assertNoSecrets(t, s, secrets[0])

	// An admin token with an end stands in for the first one until then, a viewer never.
	soon := clock().Add(time.Hour)
	if _, _, err := a.CreateToken(t.Context(), access.AccessToken{Meta: atelier.Meta{Name: "v"}, Role: access.Viewer}); err != nil {
		t.Fatal(err)
	}
	if err := a.RevokeToken(t.Context(), "admin", 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.CreateToken(t.Context(), access.AccessToken{Meta: atelier.Meta{Name: "admin"}, Role: access.Admin, Expires: &soon}); err != nil {
		t.Fatal(err)
	}
	secret := ""
	show := func(s string) error {
		secret = s
		return nil
	}
	if err := a.Bootstrap(t.Context(), show); err != nil || secret != "" {
		t.Errorf("with an admin token: made %q, %v", secret, err)
	}
	later := access.New(s, func() time.Time { return soon })
	if err := later.Bootstrap(t.Context(), show); err != nil || secret == "" {
		t.Fatalf("when the last admin token has expired: made %q, %v", secret, err)
	}
	if p, err := later.Authenticate(t.Context(), secret); err != nil || p.Role != access.Admin {
		t.Errorf("Authenticate = %+v, %v", p, err)
	}
}

// A hub may end between showing its first token and storing it, and between
// two starts nobody may be locked out.
func TestBootstrapShowsBeforeItStores(t *testing.T) {
	t.Parallel()
	a := access.New(newStore(t), clock)
	cutOff := errors.New("cut off")
	err := a.Bootstrap(t.Context(), func(secret string) error {
		if _, err := a.Authenticate(t.Context(), secret); atelier.CodeOf(err) != atelier.Unauthenticated {
			t.Errorf("the token is stored before it is shown: %v", err)
		}
		return cutOff
	})
	if !errors.Is(err, cutOff) {
		t.Fatalf("Bootstrap: %v", err)
	}
	shown := ""
	err = a.Bootstrap(t.Context(), func(secret string) error {
		shown = secret
		return nil
	})
	if err != nil || shown == "" {
		t.Fatalf("the next start shows %q, %v", shown, err)
	}
	if _, err := a.Authenticate(t.Context(), shown); err != nil {
		t.Error(err)
	}
}

func TestPrincipal(t *testing.T) {
	t.Parallel()
	if p := access.PrincipalFrom(t.Context()); p.Kind != access.Anonymous {
		t.Errorf("without a principal: %+v", p)
	}
	for want, p := range map[string]access.Principal{
		"token:dash": {Kind: access.User, ID: "1", Name: "dash"},
		"device:1":   {Kind: access.Device, ID: "1"},
		"hub":        {Kind: access.System},
	} {
		if got := p.Actor(); got != want {
			t.Errorf("Actor = %q, want %q", got, want)
		}
	}
}
