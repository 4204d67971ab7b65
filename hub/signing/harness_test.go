package signing

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"encoding/pem"
	"io/fs"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/authority"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/distribution"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/sqlite"
	"github.com/atelier-edge/atelier/hub/vault"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/trust"
)

// hub is as much of a hub as signs images and lets tools pull them.
type hub struct {
	*Service
	t         testing.TB
	ctx       context.Context
	dir       string
	host      string
	ca        string // file with the server's certificate
	secret    string // of a token that may do everything
	workspace string // id of plant-7
	store     store.Store
	authority *authority.Authority
	told      []string // workspaces whose delegation changed
}

func newHub(t testing.TB) *hub {
	t.Helper()
	h := &hub{t: t, dir: t.TempDir(), ctx: access.WithPrincipal(t.Context(), access.Principal{Kind: access.System})}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	db, err := sqlite.Open(h.ctx, filepath.Join(h.dir, "hub.db"))
	must(err)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	h.store = db
	contents, err := content.Open(durable.OS{}, filepath.Join(h.dir, "content"))
	must(err)
	log := slog.New(slog.DiscardHandler)
	registry := images.New(images.Config{Store: db, Content: contents, Log: log})
	entry := access.New(db, nil)
	must(entry.Bootstrap(h.ctx, func(secret string) error {
		h.secret = secret
		return nil
	}))
	server := httptest.NewUnstartedServer(distribution.New(distribution.Config{Images: registry, Access: entry, Log: log}))
	server.EnableHTTP2 = true
	server.Config.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelError) // cosign tries HTTP on 127.0.0.1 first
	server.StartTLS()
	t.Cleanup(server.Close)
	h.host, h.ca = strings.TrimPrefix(server.URL, "https://"), filepath.Join(h.dir, "ca.pem")
	must(os.WriteFile(h.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	h.authority, err = authority.Open(authority.Options{Dir: filepath.Join(h.dir, "authority")})
	must(err)
	must(db.Update(h.ctx, store.By{Actor: "test"}, func(tx store.Tx) error {
		w, err := catalog.Workspaces.Insert(tx, "", "", atelier.Workspace{Meta: atelier.Meta{Name: "plant-7"}, Resources: []atelier.AssociatedResource{
			{Kind: atelier.ResourceRegistry, Provider: atelier.ProviderBuiltin},
		}})
		h.workspace = w.ID
		return err
	}))
	secrets, err := vault.Open(durable.OS{}, filepath.Join(h.dir, "vault.key"))
	must(err)
	h.Service, err = New(h.ctx, Config{
		Store: db, Vault: secrets, Authority: h.authority, Images: registry, Host: h.host, Log: log,
		Delegated: func(workspace string) { h.told = append(h.told, workspace) },
	})
	must(err)
	return h
}

// file is a file of a layer.
type file struct{ name, text string }

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipOf(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// push pushes an image of layers to press/cell, as tools do.
func (h *hub) push(tag string, layers ...[]byte) atelier.Image {
	h.t.Helper()
	m := images.Manifest{SchemaVersion: 2, MediaType: images.TypeImage}
	var diffs []string
	for _, l := range layers {
		d, err := h.c.Images.Put(h.ctx, h.workspace, "press/cell", "application/vnd.oci.image.layer.v1.tar+gzip", gzipOf(h.t, l))
		if err != nil {
			h.t.Fatal(err)
		}
		m.Layers, diffs = append(m.Layers, d), append(diffs, string(atelier.DigestOf(l)))
	}
	config, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	if err != nil {
		h.t.Fatal(err)
	}
	if m.Config, err = h.c.Images.Put(h.ctx, h.workspace, "press/cell", typeConfig, config); err != nil {
		h.t.Fatal(err)
	}
	body, err := json.Marshal(m)
	if err != nil {
		h.t.Fatal(err)
	}
	img, err := h.c.Images.Push(h.ctx, h.workspace, "press/cell", images.Reference(tag), nil, images.TypeImage, body)
	if err != nil {
		h.t.Fatal(err)
	}
	return img
}

func (h *hub) sign(tag string, lineage *atelier.Lineage) atelier.Image {
	h.t.Helper()
	img, err := h.Sign(h.ctx, h.workspace, Order{Repository: "press/cell", Ref: images.Reference(tag), Lineage: lineage})
	if err != nil {
		h.t.Fatal(err)
	}
	return img
}

// device is what a device of the workspace trusts now.
func (h *hub) device() *trust.Pinned {
	h.t.Helper()
	root, delegation, err := h.authority.Pin(h.workspace)
	if err != nil {
		h.t.Fatal(err)
	}
	p, err := trust.Pin(h.workspace, root)
	if err == nil {
		_, err = p.Apply(delegation)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

// key writes the public key that signs to a file.
func (h *hub) key() string {
	h.t.Helper()
	keys, err := h.Keys(h.ctx, h.workspace)
	if err != nil || len(keys) == 0 {
		h.t.Fatal(keys, err)
	}
	path := filepath.Join(h.t.TempDir(), "images.pem")
	if err := os.WriteFile(path, []byte(keys[0].PEM), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// flip flips a bit of content where it lies on the hub's disk; doing so again mends it.
func (h *hub) flip(digest string) {
	h.t.Helper()
	_, hexa, _ := strings.Cut(digest, ":")
	flipped := false
	err := filepath.WalkDir(filepath.Join(h.dir, "content"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.Contains(path, hexa) && !strings.Contains(strings.ReplaceAll(path, "/", ""), hexa) {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		flipped = true
		b[len(b)/2] ^= 1
		return os.WriteFile(path, b, 0o600)
	})
	if err != nil || !flipped {
		h.t.Fatalf("nothing of %s was changed on the disk: %v", digest, err)
	}
}

// about returns what refers to an image with the artifact type, with the one layer of each.
func (h *hub) about(digest, artifactType string) (layers []images.Descriptor, bodies [][]byte) {
	h.t.Helper()
	list, _, err := h.c.Images.Referrers(h.ctx, h.workspace, "press/cell", digest, artifactType, "")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, d := range list {
		l, b := h.layers(d.Digest)
		layers, bodies = append(layers, l...), append(bodies, b...)
	}
	return layers, bodies
}

// layers returns the layers of an image.
func (h *hub) layers(ref string) ([]images.Descriptor, [][]byte) {
	h.t.Helper()
	_, body, err := h.c.Images.Manifest(h.ctx, h.workspace, "press/cell", images.Reference(ref))
	var m parts
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	var bodies [][]byte
	for _, l := range m.Layers {
		b, err := h.c.Images.OpenLayer(h.ctx, h.workspace, "press/cell", l.Digest)
		if err != nil {
			h.t.Fatal(err)
		}
		all := make([]byte, b.Size())
		if _, err := b.ReadAt(all, 0); err != nil {
			h.t.Fatal(err)
		}
		_ = b.Close() // read only
		bodies = append(bodies, all)
	}
	return m.Layers, bodies
}

// tool returns a program that CI must have.
func tool(t testing.TB, name string, dirs ...string) string {
	t.Helper()
	for _, dir := range append(dirs, append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin")...) {
		path, err := filepath.Abs(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is missing: scripts/install-test-tools installs it", name)
	}
	t.Skipf("%s is missing: scripts/install-test-tools installs it", name)
	return ""
}

// shell runs programs with a home and credentials of their own.
type shell struct {
	t   testing.TB
	dir string
	env []string
}

func (h *hub) shell() *shell {
	dir := h.t.TempDir()
	s := &shell{h.t, dir, append(os.Environ(), "HOME="+dir, "DOCKER_CONFIG="+dir, "REGISTRY_AUTH_FILE="+filepath.Join(dir, "config.json"), "SSL_CERT_FILE="+h.ca)}
	auth, err := json.Marshal(map[string]any{"auths": map[string]any{h.host: map[string][]byte{"auth": []byte("anybody:" + h.secret)}}})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), auth, 0o600)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (s *shell) try(program string, args ...string) (string, error) {
	cmd := exec.CommandContext(s.t.Context(), program, args...)
	cmd.Dir, cmd.Env = s.dir, s.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}
