package e2e

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// pusher pushes images to a hub that is killed under it.
type pusher struct {
	t      *testing.T
	http   *http.Client
	base   string
	token  string
	pieces atomic.Int64 // that were acknowledged
}

func (w *world) pusher(t *testing.T) *pusher {
	authority, err := os.ReadFile(w.authority(t))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	fields := strings.Fields(w.login)
	return &pusher{t: t, base: "https://" + w.listen, token: fields[len(fields)-1], http: &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}},
	}}
}

// do makes one request; an error is one of the connection.
func (p *pusher) do(method, path string, body []byte, headers ...string) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.SetBasicAuth("anybody", p.token)
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Set(name, value)
	}
	res, err := p.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(res.Body)
	return res, answer, err
}

// insist repeats a request until the hub answers it.
func (p *pusher) insist(method, path string, body []byte, headers ...string) (res *http.Response, answer []byte) {
	p.t.Helper()
	eventually(p.t, 90*time.Second, func() (err error) {
		res, answer, err = p.do(method, path, body, headers...)
		return err
	})
	return res, answer
}

// blob pushes a blob piece by piece, and goes on where it stood whenever the hub is
// there again: what was acknowledged must not be lost.
func (p *pusher) blob(repo string, b []byte, piece int) error {
	digest := string(atelier.DigestOf(b))
	for {
		res, answer := p.insist("POST", "/v2/"+repo+"/blobs/uploads/", nil)
		if res.StatusCode != http.StatusAccepted {
			return fmt.Errorf("begin: %s %s", res.Status, answer)
		}
		place, acked := res.Header.Get("Location"), 0
		for acked < len(b) {
			end := min(acked+piece, len(b))
			res, answer, err := p.do("PATCH", place, b[acked:end], fmt.Sprintf("Content-Range: %d-%d", acked, end-1))
			if err == nil && res.StatusCode == http.StatusAccepted {
				acked = end
				p.pieces.Add(1)
				continue
			}
			if err == nil {
				return fmt.Errorf("a piece from %d: %s %s", acked, res.Status, answer)
			}
			res, answer = p.insist("GET", place, nil)
			if res.StatusCode != http.StatusNoContent {
				return fmt.Errorf("%d bytes were acknowledged, and the hub says %s %s", acked, res.Status, answer)
			}
			last, err := strconv.Atoi(strings.TrimPrefix(res.Header.Get("Range"), "0-"))
			if err != nil || last+1 < acked {
				return fmt.Errorf("%d bytes were acknowledged, and the hub has %q", acked, res.Header.Get("Range"))
			}
			if acked = last + 1; last == 0 {
				acked = 0 // which is how an upload without bytes is told
			}
		}
		res, answer, err := p.do("PUT", place+"?digest="+digest, nil)
		if err == nil && res.StatusCode != http.StatusCreated {
			return fmt.Errorf("finish: %s %s", res.Status, answer)
		}
		if err == nil {
			return nil
		}
		// Nothing was acknowledged: it is there, or begins anew.
		if res, _ := p.insist("HEAD", "/v2/"+repo+"/blobs/"+digest, nil); res.StatusCode == http.StatusOK {
			return nil
		}
	}
}

// image pushes an image of one layer.
func (p *pusher) image(repo, tag string, layer []byte, piece int) (digest string, err error) {
	if err := p.blob(repo, layer, piece); err != nil {
		return "", err
	}
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	if err := p.blob(repo, config, piece); err != nil {
		return "", err
	}
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`,
		atelier.DigestOf(config), len(config), atelier.DigestOf(layer), len(layer))
	res, answer := p.insist("PUT", "/v2/"+repo+"/manifests/"+tag, manifest, "Content-Type: application/vnd.oci.image.manifest.v1+json")
	if res.StatusCode != http.StatusCreated {
		return "", fmt.Errorf("the manifest: %s %s", res.Status, answer)
	}
	return string(atelier.DigestOf(manifest)), nil
}

// TestImagesOnAHubThatIsKilled pushes images while the hub is killed again and again,
// and looks at them with the command line.
func TestImagesOnAHubThatIsKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	p := w.pusher(t)
	const images, piece = 4, 128 << 10
	random := rand.NewChaCha8([32]byte{7})
	layers := make([][]byte, images)
	for i := range layers {
		layers[i] = make([]byte, 1<<20+i)
		_, _ = random.Read(layers[i]) // never fails
	}
	digests := make([]string, images)
	done := make(chan error, 1)
	go func() {
		done <- func() (err error) {
			for i, layer := range layers {
				if digests[i], err = p.image("plant/press/cell", fmt.Sprint("v", i), layer, piece); err != nil {
					return fmt.Errorf("image %d: %w", i, err)
				}
			}
			return nil
		}()
	}()
	var err error
	ended := false
	for kill := range int64(4) {
		at := 3 + kill*9 // in the middle of another image each time
		for p.pieces.Load() < at && !ended {
			select {
			case err = <-done:
				ended = true
			case <-time.After(time.Millisecond):
			}
		}
		if ended {
			break
		}
		w.hub.signal(t, syscall.SIGKILL)
		w.startHub()
	}
	if ended || p.pieces.Load() >= images*(int64(len(layers[0]))/piece+1) {
		t.Errorf("the hub was not killed while images were pushed")
	}
	if !ended {
		err = <-done
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, layer := range layers {
		res, got := p.insist("GET", "/v2/plant/press/cell/blobs/"+string(atelier.DigestOf(layer)), nil)
		if res.StatusCode != http.StatusOK || !bytes.Equal(got, layer) {
			t.Errorf("layer %d came back as %s with %d bytes, want %d", i, res.Status, len(got), len(layer))
		}
		res, got = p.insist("GET", "/v2/plant/press/cell/manifests/"+fmt.Sprint("v", i), nil)
		if d := string(atelier.DigestOf(got)); res.StatusCode != http.StatusOK || d != digests[i] {
			t.Errorf("manifest %d came back as %s with the digest %s, want %s", i, res.Status, d, digests[i])
		}
	}
	if files, err := filepath.Glob(filepath.Join(w.dir, "hub", "content", "ingest", "*")); err != nil || len(files) > 2*4 {
		t.Errorf("%d files of uploads are left: %v", len(files), err) // each kill may leave one that was finished without an answer
	}

	var list []atelier.Image
	w.asked(&list, "image", "list")
	if len(list) != images || list[0].Repository != "press/cell" || strings.Join(list[0].Tags, "") != "v0" || list[0].Digest != digests[0] {
		t.Errorf("the images are %+v", list)
	}
	var shown struct {
		atelier.Image
		Manifest json.RawMessage
	}
	w.asked(&shown, "image", "show", "press/cell:v1")
	if shown.Digest != digests[1] || !bytes.Contains(shown.Manifest, []byte("layers")) {
		t.Errorf("the image is %+v", shown)
	}
	if out := w.atelier("image", "show", "press/cell@"+digests[2]); !strings.Contains(out, "1.0 MB") && !strings.Contains(out, "1.0 MiB") || !strings.Contains(out, "config") {
		t.Errorf("the image is shown as\n%s", out)
	}
	w.signing(p, "plant/press/cell", digests[1])
	if out := w.atelier("workspace", "show"); !strings.Contains(out, "builtin, /v2/") {
		t.Errorf("the workspace does not show its registry:\n%s", out)
	}
	if out := w.fails(4, "workspace", "set", "--registry", "https://registry.example"); !strings.Contains(out, "atelier image delete") {
		t.Errorf("the refusal says\n%s", out)
	}
	w.fails(4, "workspace", "delete", "plant")
	w.fails(3, "image", "show", "press/cell:v9")
	w.fails(2, "image", "show", "press/Cell:v1")
	w.atelier("image", "delete", "press/cell:v0")
	w.atelier("image", "delete", "press/cell@"+digests[1])
	var left []atelier.Image
	w.asked(&left, "image", "list", "press/cell")
	if len(left) != images-1 || len(left[0].Tags) != 0 {
		t.Errorf("the images are %+v", left)
	}
	w.atelier("image", "delete", "press/cell")
	if out := w.atelier("image", "list"); !strings.Contains(out, w.listen+"/plant/NAME") {
		t.Errorf("the empty list says\n%s", out)
	}
	w.atelier("workspace", "set", "--registry", "https://registry.example/plant")
	if _, answer := p.insist("GET", "/v2/plant/press/cell/tags/list", nil); !strings.Contains(string(answer), "https://registry.example/plant") {
		t.Errorf("the hub does not say where the images are: %s", answer)
	}
	if out := w.atelier("audit"); !strings.Contains(out, "image.push") || !strings.Contains(out, "image.delete") {
		t.Errorf("the audit trail does not tell of the images:\n%s", out)
	}
}

// signing signs press/cell:v1, which has the digest, and looks at what that gives.
func (w *world) signing(p *pusher, repo, digest string) {
	w.t.Helper()
	w.fails(3, "key", "export")
	w.fails(3, "image", "sign", "press/cell:v9")
	var img atelier.Image
	w.asked(&img, "image", "sign", "press/cell:v1")
	if s := img.Signature; img.Digest != digest || s == nil || !s.Trusted {
		w.t.Fatalf("signed is %+v", img)
	}
	key := w.atelier("key", "export")
	if block, _ := pem.Decode([]byte(key)); block == nil || block.Type != "PUBLIC KEY" || fmt.Sprintf("%x", sha256.Sum256(block.Bytes)) != img.Signature.Key {
		w.t.Errorf("the key that is exported is not %s\n%s", img.Signature.Key, key)
	}
	if out := w.atelier("key", "list"); !strings.Contains(out, img.Signature.Key[:16]) || !strings.Contains(out, "signs") {
		w.t.Errorf("the keys are shown as\n%s", out)
	}
	if out := w.atelier("image", "show", "press/cell:v1"); !strings.Contains(out, "by "+img.Signature.Key[:16]) {
		w.t.Errorf("the signed image is shown as\n%s", out)
	}
	res, index := p.insist("GET", "/v2/"+repo+"/referrers/"+digest, nil)
	if res.StatusCode != http.StatusOK || !bytes.Contains(index, []byte("application/vnd.dev.sigstore.bundle.v0.3+json")) || !bytes.Contains(index, []byte("application/spdx+json")) {
		w.t.Errorf("about the image there is %s %s", res.Status, index)
	}
	var all, list []atelier.Image
	w.asked(&all, "image", "list", "--all")
	w.asked(&list, "image", "list")
	if len(all) <= len(list) {
		w.t.Errorf("of %d images %d are shown", len(all), len(list))
	}
	w.hub.signal(w.t, syscall.SIGKILL) // the key is in the vault
	w.startHub()
	w.atelier("key", "rotate", "--revoke")
	if again := w.atelier("key", "export"); again == key {
		w.t.Error("a rotation keeps the key")
	}
	if out := w.atelier("image", "list"); !strings.Contains(out, "which was revoked") {
		w.t.Errorf("the images are shown as\n%s", out)
	}
	w.asked(&img, "image", "sign", "press/cell@"+digest, "--no-sbom")
	if s := img.Signature; s == nil || !s.Trusted {
		w.t.Errorf("signed again is %+v", img)
	}
	if out := w.atelier("audit"); !strings.Contains(out, "image.sign") || !strings.Contains(out, "signing-key.rotate") {
		w.t.Errorf("the audit trail does not tell of the signatures:\n%s", out)
	}
}
