package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// packaged measures packages: how long one takes, what a change of the model alone costs,
// and the registry that its images come from.
var packaged = benchmark{
	name:  "packages",
	about: "building packages, and pushing and pulling images",
	parts: []part{{name: "build", measure: buildPackages}, {name: "registry", measure: registryRates}},
}

const (
	packagePairs = 5
	modelSize    = 256 << 20 // bytes
	baseSize     = 20 << 20  // as scripts/build-base makes it
	// warmBuild is how long a package may take whose only change is the model, beside a
	// copy of the model.
	warmBuild = 2 // s
)

// buildPackages builds a package of each of several versions of a model. The first of a
// workspace makes all layers; the others the model's alone. In turn with them the model
// is copied and synced by coreutils, which is the least that a layer of it takes.
func buildPackages(ctx context.Context, w *world) ([]Figure, error) {
	if err := w.boot(ctx); err != nil {
		return nil, err
	}
	if err := w.packageParts(ctx); err != nil {
		return nil, err
	}
	var cold, warm, copied, beyond, moved, pulled []float64
	for pair := range packagePairs {
		name := fmt.Sprintf("large-%d", pair)
		// A workspace of its own, in which nothing is there yet.
		if err := w.atelier(ctx, "workspace", "create", name); err != nil {
			return nil, err
		}
		if err := w.atelier(ctx, "base", "add", "noise", filepath.Join(w.dir, "base.tar"), "-w", name, "-q"); err != nil {
			return nil, err
		}
		for version := range uint64(2) {
			dir, weights, err := w.largeModel(uint64(pair)*2 + version)
			if err != nil {
				return nil, err
			}
			if err := w.atelier(ctx, "model", "register", "large", dir, "-w", name, "-q"); err != nil {
				return nil, err
			}
			began := time.Now()
			if err := w.atelier(ctx, "package", "build", "large", "-w", name, "-q"); err != nil {
				return nil, err
			}
			took := time.Since(began).Seconds()
			if version == 0 {
				cold = append(cold, took)
				continue
			}
			warm = append(warm, took)
			seconds, err := copyOne(ctx, weights)
			if err != nil {
				return nil, err
			}
			copied = append(copied, seconds)
			beyond = append(beyond, took-seconds)
			changed, err := w.changedBytes(ctx, name)
			if err != nil {
				return nil, err
			}
			moved = append(moved, float64(changed)/modelSize)
			bytes, err := w.pullSecond(ctx, name)
			if err != nil {
				return nil, err
			}
			pulled = append(pulled, float64(bytes)/modelSize)
		}
	}
	const peer = "cp MODEL COPY && sync COPY, s"
	return []Figure{
		lower("package of a 256 MB model, base, runtime and model server made for the first time", "s", cold).beside(peer, copied),
		lower("package whose only change is the model, 256 MB", "s", warm).beside(peer, copied),
		lower("the same, beyond a copy of the model", "s", beyond).want(warmBuild).beside(peer, copied),
		lower("layers, configuration and manifest that are new in it", "of the model's size", moved),
		lower("bytes that a registry's client fetches that has the package before", "of the model's size", pulled),
	}, nil
}

// packageParts registers what images are made of beside models.
func (w *world) packageParts(ctx context.Context) error {
	version, err := os.ReadFile(filepath.Join(w.root, ".cache/onnxruntime/VERSION"))
	if err != nil {
		return err
	}
	if err := writeNoise(filepath.Join(w.dir, "base.tar"), baseSize, 60_000); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"runtime", "register", "onnxruntime", strings.TrimSpace(string(version)), w.library(), "--needs-glibc", "2.28"},
		{"runtime", "register", "atelier-serve", "1", filepath.Join(w.root, "bin", "atelier-serve")},
	} {
		if err := w.atelier(ctx, append(args, "-q")...); err != nil {
			return err
		}
	}
	return nil
}

// largeModel makes a directory with a model: digits, and beside it weights of noise.
func (w *world) largeModel(seed uint64) (dir, weights string, err error) {
	dir = filepath.Join(w.dir, "model")
	weights = filepath.Join(dir, "weights.bin")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return "", "", err
	}
	model, err := os.ReadFile(w.digits(1))
	if err != nil {
		return "", "", err
	}
	return dir, weights, errors.Join(os.WriteFile(filepath.Join(dir, "model.onnx"), model, 0o600), writeNoise(weights, modelSize, seed))
}

// copyOne returns the seconds that coreutils take to copy a file durably.
func copyOne(ctx context.Context, file string) (float64, error) {
	began := time.Now()
	if out, err := exec.CommandContext(ctx, "sh", "-c", `cp "$1" "$1.copy" && sync "$1.copy"`, "sh", file).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("cp and sync: %w\n%s", err, out)
	}
	return time.Since(began).Seconds(), os.Remove(file + ".copy")
}

// builtPackage is what is read of a package.
type builtPackage struct {
	Images []struct {
		Manifest, Config packagePart
		Layers           []packagePart
	}
}

type packagePart struct {
	Digest string
	Size   int64
}

// changedBytes returns how many bytes the second version's image has that the first's
// has not.
func (w *world) changedBytes(ctx context.Context, workspace string) (int64, error) {
	there := map[string]bool{}
	var fresh int64
	for _, tag := range []string{"1", "2"} {
		out, err := w.command(ctx, "atelier", "package", "show", "large:"+tag, "-w", workspace, "-o", "json")
		if err != nil {
			return 0, err
		}
		var p builtPackage
		if err := json.Unmarshal(out, &p); err != nil || len(p.Images) != 1 {
			return 0, fmt.Errorf("the package is %s: %w", out, err)
		}
		fresh = 0
		for _, part := range append(p.Images[0].Layers, p.Images[0].Manifest, p.Images[0].Config) {
			if !there[part.Digest] {
				there[part.Digest] = true
				fresh += part.Size
			}
		}
	}
	return fresh, nil
}

// pullSecond pulls both versions into one layout and returns the bytes of layers and
// configurations that the hub sent for the second.
func (w *world) pullSecond(ctx context.Context, workspace string) (int64, error) {
	before := int64(0)
	for _, tag := range []string{"1", "2"} {
		var err error
		if before, err = w.sentBytes(ctx); err != nil {
			return 0, err
		}
		layout := filepath.Join(w.dir, "layout-"+workspace)
		if _, err := w.tool(ctx, "skopeo", "--insecure-policy", "copy", "--src-creds", "bench:"+w.token, "--src-tls-verify=false", "--dest-oci-accept-uncompressed-layers",
			"docker://"+w.listen+"/"+workspace+"/large:"+tag, "oci:"+layout+":"+tag); err != nil {
			return 0, err
		}
	}
	after, err := w.sentBytes(ctx)
	return after - before, errors.Join(err, os.RemoveAll(filepath.Join(w.dir, "layout-"+workspace)))
}

// sentBytes returns how many bytes of layers the hub's registry has sent.
func (w *world) sentBytes(ctx context.Context) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+w.listen+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+w.token)
	res, err := w.client.Do(req)
	if err != nil {
		return 0, err
	}
	var b bytes.Buffer
	_, err = b.ReadFrom(res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(b.String(), "\n") {
		if value, ok := strings.CutPrefix(line, `atelier_image_bytes_total{way="pull"} `); ok {
			var n float64
			_, err := fmt.Sscan(value, &n)
			return int64(n), err
		}
	}
	return 0, errors.New("the hub does not tell atelier_image_bytes_total")
}

// tool runs a program of the system with a home below the part's directory.
func (w *world) tool(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "HOME="+w.dir, "DOCKER_CONFIG="+w.dir, "REGISTRY_AUTH_FILE="+filepath.Join(w.dir, "auth.json"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return out, nil
}
