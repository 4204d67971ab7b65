package distribution

import (
	"bytes"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/sqlite"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
)

// registry is the API on a real server with TLS, over a real database and content store.
type registry struct {
	t       testing.TB
	server  *httptest.Server
	host    string
	ca      string // file with the server's certificate
	admin   string // a token that may do everything
	store   store.Store
	content *content.Store
	access  *access.Authority
	images  *images.Registry
}

func newRegistry(t testing.TB, change ...func(*images.Config)) *registry {
	t.Helper()
	dir := t.TempDir()
	db, err := sqlite.Open(t.Context(), filepath.Join(dir, "hub.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	contents, err := content.Open(durable.OS{}, filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	c := images.Config{Store: db, Content: contents, Log: log}
	for _, f := range change {
		f(&c)
	}
	x := &registry{t: t, store: db, content: contents, access: access.New(db, nil), images: images.New(c)}
	err = x.access.Bootstrap(t.Context(), func(secret string) error {
		x.admin = secret
		return nil
	})
	if err != nil || x.admin == "" {
		t.Fatal(x.admin, err)
	}
	x.server = httptest.NewUnstartedServer(New(Config{Images: x.images, Access: x.access, Log: log}))
	x.server.EnableHTTP2 = true
	x.server.StartTLS()
	t.Cleanup(x.server.Close)
	x.host = strings.TrimPrefix(x.server.URL, "https://")
	x.ca = filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(x.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: x.server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return x
}

// workspace makes a workspace and returns its id.
func (x *registry) workspace(name string) string {
	x.t.Helper()
	var w atelier.Workspace
	err := x.store.Update(x.t.Context(), store.By{Actor: "test"}, func(tx store.Tx) (err error) {
		w, err = catalog.Workspaces.Insert(tx, "", "", atelier.Workspace{Meta: atelier.Meta{Name: name}, Resources: []atelier.AssociatedResource{
			{Kind: atelier.ResourceRegistry, Provider: atelier.ProviderBuiltin},
		}})
		return err
	})
	if err != nil {
		x.t.Fatal(err)
	}
	return w.ID
}

// token makes an access token.
func (x *registry) token(name, role, workspace string) string {
	x.t.Helper()
	ctx := access.WithPrincipal(x.t.Context(), access.Principal{Kind: access.System})
	_, secret, err := x.access.CreateToken(ctx, access.AccessToken{Meta: atelier.Meta{Name: name}, Role: role, Workspace: workspace})
	if err != nil {
		x.t.Fatal(err)
	}
	return secret
}

// reply is an answer, read whole.
type reply struct {
	status int
	header http.Header
	body   string
}

// do makes a request as the holder of a token ("" for nobody); headers are "Name: value".
func (x *registry) do(token, method, path string, body []byte, headers ...string) reply {
	x.t.Helper()
	var in io.Reader
	if body != nil {
		in = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(x.t.Context(), method, x.server.URL+path, in)
	if err != nil {
		x.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Set(name, value)
	}
	res, err := x.server.Client().Transport.RoundTrip(req)
	if err != nil {
		x.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	all, err := io.ReadAll(res.Body)
	if err != nil {
		x.t.Fatal(err)
	}
	return reply{res.StatusCode, res.Header, string(all)}
}

// is checks an answer's status, and that an error has the code ("" for no error).
func (r reply) is(t testing.TB, status int, code string) reply {
	t.Helper()
	if r.status != status || code != "" && !strings.Contains(r.body, `"code":"`+code+`"`) {
		t.Fatalf("status %d, want %d %s: %s", r.status, status, code, r.body)
	}
	return r
}
