package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	speedRounds = 5
	speedSize   = 256_000_000
)

// transferSpeed lets one device pull a version of 256 MB over loopback and mutual
// TLS, in turn with curl that fetches the same file over HTTPS from the same hub,
// then sha256sum and sync. Each round has a version of its own, of noise.
func transferSpeed(ctx context.Context, w *world) ([]Figure, error) {
	d, err := oneDevice(ctx, w)
	if err != nil {
		return nil, err
	}
	var pulled, fetched, peaks, offs []float64
	for round := range speedRounds {
		file, err := w.registerNoise(ctx, "large", speedSize, uint64(round))
		if err != nil {
			return nil, err
		}
		took, err := w.curl(ctx, file)
		if err != nil {
			return nil, err
		}
		fetched = append(fetched, speedSize/1e6/took.Seconds())
		planned, err := w.planned(ctx, "large", "--device", d.name)
		if err != nil {
			return nil, err
		}
		if err := resetPeak(d.agent.PID()); err != nil {
			return nil, err
		}
		if took, err = w.bring(ctx, "large", d); err != nil {
			return nil, err
		}
		pulled = append(pulled, speedSize/1e6/took.Seconds())
		m, err := memoryOf(d.agent.PID())
		if err != nil {
			return nil, err
		}
		peaks = append(peaks, m.peak)
		received, err := w.received(ctx, "large", false)
		if err != nil {
			return nil, err
		}
		offs = append(offs, off(planned, received))
		fmt.Fprintf(w.out, "  pulled at %.0f MB/s, curl at %.0f MB/s, the agent's peak %.1f MB\n", pulled[round], fetched[round], m.peak/1e6)
	}
	share := higher("a version of 256 MB over mutual TLS on loopback, verified and synced: the rate against curl's", "times", ratios(pulled, fetched)).want(0.5)
	return []Figure{
		share.beside("curl over HTTPS, then sha256sum and sync, MB/s", fetched),
		higher("its rate", "MB/s", pulled),
		lower("atelier-agent resident, peak meanwhile", "bytes", peaks).want(16e6),
		offFigure("all rounds over loopback", offs),
	}, nil
}

// noiseFile is the large file of a version of noise.
type noiseFile struct {
	path   string
	digest string
}

// registerNoise registers a version that is the digits classifier with a file of
// size bytes of noise beside it: to hub and agent content is content.
func (w *world) registerNoise(ctx context.Context, model string, size int, seed uint64) (noiseFile, error) {
	dir := filepath.Join(w.dir, fmt.Sprintf("%s-%d", model, seed))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return noiseFile{}, err
	}
	entry, err := os.ReadFile(w.digits(1))
	if err != nil {
		return noiseFile{}, err
	}
	file := noiseFile{path: filepath.Join(dir, "noise.bin")}
	if err := os.WriteFile(filepath.Join(dir, "model.onnx"), entry, 0o600); err != nil {
		return noiseFile{}, err
	}
	if err := writeNoise(file.path, size, seed); err != nil {
		return noiseFile{}, err
	}
	if err := w.atelier(ctx, "model", "register", model, dir, "--entry", "model.onnx", "-q"); err != nil {
		return noiseFile{}, err
	}
	var version struct {
		Variants []struct {
			Files []struct{ Path, Digest string }
		}
	}
	if err := w.rest(ctx, http.MethodGet, "/models/"+model+"/versions/latest", "", nil, &version); err != nil {
		return noiseFile{}, err
	}
	for _, v := range version.Variants {
		for _, f := range v.Files {
			if f.Path == "noise.bin" {
				file.digest = f.Digest
			}
		}
	}
	if file.digest == "" {
		return noiseFile{}, fmt.Errorf("the version that was registered has no noise.bin: %+v", version)
	}
	return file, nil
}

func writeNoise(path string, size int, seed uint64) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	_, err = io.CopyN(f, rand.NewChaCha8(key), int64(size))
	return err
}

// curl fetches the file from the hub as a user would, checks and syncs it.
func (w *world) curl(ctx context.Context, file noiseFile) (time.Duration, error) {
	authority := filepath.Join(w.dir, "authority.pem")
	certificate, err := w.authority()
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(authority, certificate, 0o600); err != nil {
		return 0, err
	}
	to := filepath.Join(w.dir, "curl.out")
	const script = `set -e
curl -sSf --cacert "$1" -H "Authorization: Bearer $2" -o "$3" "$4"
echo "${5#sha256:}  $3" | sha256sum -c --quiet
sync "$3"`
	cmd := exec.CommandContext(ctx, "sh", "-c", script, "sh", authority, w.token, to, w.url+"/blobs/"+file.digest, file.digest)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("curl, sha256sum and sync: %w\n%s", err, out)
	}
	return took, os.Remove(to)
}

// bring deploys the latest version of model to the devices and returns how long it
// took until it was there.
func (w *world) bring(ctx context.Context, model string, devices ...*device) (time.Duration, error) {
	args := []string{"deploy", model, "-q"}
	for _, d := range devices {
		args = append(args, "--device", d.name)
	}
	began := time.Now()
	err := w.atelier(ctx, args...)
	return time.Since(began), err
}
