//go:build linux

package crash

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

// image is the image that is pushed and signed: a layer in pieces, a configuration in
// one, a manifest.
type image struct {
	place  string // of the layer's upload, once that was acknowledged
	sent   int    // bytes of the layer that were acknowledged
	asked  bool   // the end of the upload was asked for
	layer  bool   // acknowledged
	config bool
	pushed bool
	key    string // that signed it
}

const (
	imageRepository = "press/cell"
	imagePiece      = 150 << 10
)

var (
	imageLayer  = bytes.Repeat([]byte("seven!!"), 90<<10)
	imageConfig = []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	// imageManifest names both.
	imageManifest = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`,
		atelier.DigestOf(imageConfig), len(imageConfig), atelier.DigestOf(imageLayer), len(imageLayer))
)

// push pushes the image as container tools do, and has it signed.
func (w *world) push(ctx context.Context) error {
	i := &w.acked.image
	if !i.layer {
		if err := w.pushLayer(ctx, i); err != nil {
			return fmt.Errorf("push the layer: %w", err)
		}
	}
	if !i.config {
		res, body, err := w.ask(ctx, "POST", w.repository()+"/blobs/uploads/?digest="+string(atelier.DigestOf(imageConfig)), imageConfig)
		if err = wants(res, body, err, http.StatusCreated); err != nil {
			return fmt.Errorf("push the configuration: %w", err)
		}
		i.config = true
	}
	if !i.pushed {
		res, body, err := w.ask(ctx, "PUT", w.repository()+"/manifests/1", imageManifest, "Content-Type: application/vnd.oci.image.manifest.v1+json")
		if err = wants(res, body, err, http.StatusCreated); err != nil {
			return fmt.Errorf("push the manifest: %w", err)
		}
		i.pushed = true
	}
	if i.key == "" {
		img, err := w.client.SignImage(ctx, workspace, client.SignOrder{Image: imageRepository + ":1"})
		if err != nil {
			return fmt.Errorf("sign: %w", err)
		}
		i.key = img.Signature.Key
	}
	return nil
}

func (w *world) pushLayer(ctx context.Context, i *image) error {
	digest := string(atelier.DigestOf(imageLayer))
	if i.asked { // and not answered
		res, _, err := w.ask(ctx, "HEAD", w.repository()+"/blobs/"+digest, nil)
		if err != nil {
			return err
		}
		if i.layer = res.StatusCode == http.StatusOK; i.layer {
			return nil
		}
		// The end of an upload makes content of it, and then a part of the repository. In between
		// it is neither, and the answer is what OCI has for that: begin a new one.
		if res, _, err = w.ask(ctx, "GET", i.place, nil); err != nil {
			return err
		}
		if res.StatusCode == http.StatusNotFound {
			*i = image{}
		}
	}
	if i.place == "" {
		res, body, err := w.ask(ctx, "POST", w.repository()+"/blobs/uploads/", nil)
		if err = wants(res, body, err, http.StatusAccepted); err != nil {
			return err
		}
		i.place = res.Header.Get("Location")
	}
	at, err := w.uploaded(ctx, i)
	if err != nil {
		return err
	}
	for at < len(imageLayer) {
		end := min(at+imagePiece, len(imageLayer))
		res, body, err := w.ask(ctx, "PATCH", i.place, imageLayer[at:end], fmt.Sprintf("Content-Range: %d-%d", at, end-1))
		if err = wants(res, body, err, http.StatusAccepted); err != nil {
			return err
		}
		at, i.sent = end, end
	}
	i.asked = true
	res, body, err := w.ask(ctx, "PUT", i.place+"?digest="+digest, nil)
	if err = wants(res, body, err, http.StatusCreated); err == nil {
		i.layer = true
	}
	return err
}

// uploaded returns how many bytes of the layer the hub has: no fewer than it acknowledged.
func (w *world) uploaded(ctx context.Context, i *image) (at int, err error) {
	res, body, err := w.ask(ctx, "GET", i.place, nil)
	if err = wants(res, body, err, http.StatusNoContent); err != nil {
		return 0, fmt.Errorf("an upload of which %d bytes were acknowledged: %w", i.sent, err)
	}
	last, err := strconv.Atoi(strings.TrimPrefix(res.Header.Get("Range"), "0-"))
	if err != nil {
		return 0, fmt.Errorf("the hub has %q of an upload", res.Header.Get("Range"))
	}
	if at = last + 1; last == 0 {
		at = 0 // which is how an upload without bytes is told
	}
	if at < i.sent {
		return 0, fmt.Errorf("%d bytes of a layer were acknowledged, the hub has %d", i.sent, at)
	}
	return at, nil
}

// images checks that what was acknowledged of the image is there.
func (w *world) images(ctx context.Context) error {
	i := &w.acked.image
	if i.place != "" && !i.asked {
		if _, err := w.uploaded(ctx, i); err != nil {
			return err
		}
	}
	there := func(path string, want []byte) error {
		res, body, err := w.ask(ctx, "GET", w.repository()+path, nil, "Accept: application/vnd.oci.image.manifest.v1+json")
		if err = wants(res, nil, err, http.StatusOK); err == nil && !bytes.Equal(body, want) {
			err = fmt.Errorf("%d bytes came, expected were %d others", len(body), len(want))
		}
		if err != nil {
			return fmt.Errorf("%s was acknowledged: %w", path, err)
		}
		return nil
	}
	var errs []error
	if i.layer {
		errs = append(errs, there("/blobs/"+string(atelier.DigestOf(imageLayer)), imageLayer))
	}
	if i.config {
		errs = append(errs, there("/blobs/"+string(atelier.DigestOf(imageConfig)), imageConfig))
	}
	if i.pushed {
		errs = append(errs, there("/manifests/1", imageManifest), there("/manifests/"+string(atelier.DigestOf(imageManifest)), imageManifest))
	}
	if i.key != "" {
		img, err := w.client.Image(ctx, workspace, imageRepository+":1")
		if err == nil && (img.Signature == nil || !img.Signature.Trusted || img.Signature.Key != i.key) {
			err = fmt.Errorf("it is %+v now", img.Signature)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("the image was signed by %s: %w", i.key, err))
		}
	}
	return errors.Join(errs...)
}

func (w *world) repository() string { return "/v2/" + workspace + "/" + imageRepository }

// wants turns an answer with another status into an error.
func wants(res *http.Response, body []byte, err error, status int) error {
	if err == nil && res.StatusCode != status {
		err = fmt.Errorf("%s, expected was %d: %.300s", res.Status, status, body)
	}
	return err
}

// ask makes one request to the container registry; headers are "Name: value".
func (w *world) ask(ctx context.Context, method, path string, body []byte, headers ...string) (*http.Response, []byte, error) {
	words := strings.Fields(w.login) // atelier login URL --fingerprint F --token T
	if w.registry == nil {
		authority, err := client.FetchAuthority(ctx, words[2], words[4])
		if err != nil {
			return nil, nil, err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(authority)
		w.registry = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	}
	req, err := http.NewRequestWithContext(ctx, method, words[2]+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.SetBasicAuth("anybody", words[6])
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Set(name, value)
	}
	res, err := w.registry.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(res.Body)
	return res, answer, err
}
