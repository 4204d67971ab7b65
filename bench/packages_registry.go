package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

// registryRates pushes and pulls images of one layer of 256 MB with crane, to and from
// the hub in turn with Debian's docker-registry, both over TLS on loopback. The hub
// answers a push when all is synced; docker-registry syncs nothing.
func registryRates(ctx context.Context, w *world) ([]Figure, error) {
	if err := w.boot(ctx); err != nil {
		return nil, err
	}
	cranes, err := filepath.Glob(filepath.Join(w.root, ".cache/bin/crane-v*"))
	if err != nil || len(cranes) == 0 {
		return nil, errors.New("crane is missing: scripts/install-test-tools installs it")
	}
	crane := cranes[len(cranes)-1]
	peer, version, err := w.dockerRegistry(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := w.tool(ctx, crane, "auth", "login", w.listen, "-u", "bench", "-p", w.token); err != nil {
		return nil, err
	}
	hosts := []string{w.listen + "/bench", peer}
	if peer == "" {
		hosts = hosts[:1]
	}
	push, pull := make([][]float64, 2), make([][]float64, 2)
	const megabytes = float64(modelSize) / 1e6
	for pair := range packagePairs {
		layout := filepath.Join(w.dir, "image")
		if err := errors.Join(os.RemoveAll(layout), writeImage(layout, uint64(pair))); err != nil {
			return nil, err
		}
		for i, host := range hosts {
			image := fmt.Sprintf("%s/large:%d", host, pair)
			began := time.Now()
			if _, err := w.tool(ctx, crane, "push", "--insecure", layout, image); err != nil {
				return nil, err
			}
			push[i] = append(push[i], megabytes/time.Since(began).Seconds())
			began = time.Now()
			out := filepath.Join(w.dir, "pulled")
			if _, err := w.tool(ctx, crane, "pull", "--insecure", "--format", "oci", image, out); err != nil {
				return nil, err
			}
			pull[i] = append(pull[i], megabytes/time.Since(began).Seconds())
			if err := os.RemoveAll(out); err != nil {
				return nil, err
			}
		}
	}
	pushed, pulled := higher("crane pushes an image with a layer of 256 MB", "MB/s", push[0]), higher("crane pulls it", "MB/s", pull[0])
	if peer == "" {
		pushed.Note = version
		return []Figure{pushed, pulled}, nil
	}
	const name = "docker-registry, MB/s"
	figures := []Figure{
		pushed.beside(name, push[1]), pulled.beside(name, pull[1]),
		higher("the push, against docker-registry's, which syncs nothing", "times", ratios(push[0], push[1])),
		higher("the pull, against docker-registry's", "times", ratios(pull[0], pull[1])),
	}
	for i := range figures {
		figures[i].Note = version
	}
	return figures, nil
}

// dockerRegistry starts Debian's docker-registry with its file system driver, and returns
// its address and version; "" and why where there is none.
func (w *world) dockerRegistry(ctx context.Context) (address, version string, err error) {
	path := filepath.Join(w.root, ".cache/peers/docker-registry/usr/bin/docker-registry")
	if _, err := os.Stat(path); err != nil {
		return "", "docker-registry is missing: scripts/fetch-registry could not fetch it", nil
	}
	v, err := w.tool(ctx, path, "--version")
	if err != nil {
		return "", "", err
	}
	if address, err = boot.FreeAddress(); err != nil {
		return "", "", err
	}
	dir := filepath.Join(w.dir, "docker-registry")
	if err := errors.Join(os.MkdirAll(dir, 0o700), writeCertificate(dir)); err != nil {
		return "", "", err
	}
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog:\n  accesslog:\n    disabled: true\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: %s\n  tls:\n    certificate: %s\n    key: %s\n",
		dir, address, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return "", "", err
	}
	p := &boot.Program{Path: path, Args: []string{"serve", config}, Log: filepath.Join(w.dir, "docker-registry.log")}
	w.others = append(w.others, p)
	if err := p.Start(); err != nil {
		return "", "", err
	}
	err = boot.Eventually(ctx, 30*time.Second, func() error {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return c.Close()
	})
	return address, string(v), err
}

// writeCertificate writes a certificate for loopback that signs itself.
func writeCertificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
	)
}

// writeImage writes an OCI layout of an image with one layer of noise.
func writeImage(dir string, seed uint64) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		return err
	}
	put := func(b []byte) (descriptor string, err error) {
		sum := fmt.Sprintf("%x", sha256.Sum256(b))
		return fmt.Sprintf(`"digest":"sha256:%s","size":%d`, sum, len(b)), os.WriteFile(filepath.Join(blobs, sum), b, 0o600)
	}
	noise := filepath.Join(dir, "noise")
	if err := writeNoise(noise, modelSize, seed); err != nil {
		return err
	}
	layer, err := os.ReadFile(noise)
	if err != nil {
		return err
	}
	layerIs, err := put(layer)
	if err != nil {
		return err
	}
	config := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`, sha256.Sum256(layer))
	configIs, err := put(config)
	if err != nil {
		return err
	}
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",%s}]}`, configIs, layerIs)
	manifestIs, err := put(manifest)
	if err != nil {
		return err
	}
	index := fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s}]}`, manifestIs)
	return errors.Join(os.Remove(noise), os.WriteFile(filepath.Join(dir, "index.json"), index, 0o600),
		os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600))
}
