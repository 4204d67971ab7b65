package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// huge shows that memory does not grow with the version. It needs 25 GB of disk and
// many minutes, so that it runs only when it is named.
var huge = benchmark{
	name:  "huge",
	about: "a version of 5 GiB as it is, and another as a difference to it: memory on both sides",
	named: true,
	parts: []part{{"huge", hugeVersions}},
}

const (
	smallSize  = 512 << 20
	hugeSize   = 5 << 30
	hugeLayer  = 16 << 20 // bytes of float32 weights
	hugeGrowth = 1.25     // of the peak from the small version to the huge one, at most
)

// hugeVersions brings a version to a device and then another, of which one layer
// differs, as a difference to it, and reads the peaks of both sides' resident memory.
func hugeVersions(ctx context.Context, w *world) ([]Figure, error) {
	if err := w.boot(ctx); err != nil {
		return nil, err
	}
	if err := w.register(ctx); err != nil {
		return nil, err
	}
	var hubs, agents []float64
	for i, size := range []int64{smallSize, hugeSize} {
		d, err := w.join(ctx, fmt.Sprintf("press-%d", i))
		if err != nil {
			return nil, err
		}
		hub, agent, err := w.hugePair(ctx, d, fmt.Sprintf("huge-%d", i), size)
		if err != nil {
			return nil, err
		}
		hubs, agents = append(hubs, hub), append(agents, agent)
	}
	grown := func(of string, peaks []float64) Figure {
		f := lower(of+" resident, peak while a version of 5 GiB comes as a difference to another", "times", []float64{peaks[1] / peaks[0]}).want(hugeGrowth)
		return f.beside("with a version of 512 MiB, bytes", peaks[:1])
	}
	return []Figure{grown("atelier-hub", hubs), grown("atelier-agent", agents)}, nil
}

// hugePair brings both versions to the device and returns the peaks of the hub and of
// its agent, over registering, differing, sending and decoding.
func (w *world) hugePair(ctx context.Context, d *device, model string, size int64) (hub, agent float64, err error) {
	if err := errors.Join(resetPeak(w.hub.PID()), resetPeak(d.agent.PID())); err != nil {
		return 0, 0, err
	}
	var digests [2]string
	for version := range 2 {
		path := filepath.Join(w.dir, "huge.safetensors")
		if digests[version], err = writeHuge(path, size, version == 1); err != nil {
			return 0, 0, err
		}
		if err := w.registerBeside(ctx, model, fmt.Sprint(version), path); err != nil {
			return 0, 0, err
		}
		if err := os.Remove(path); err != nil {
			return 0, 0, err
		}
		if version == 1 {
			began := time.Now()
			difference, err := w.differenceOf(ctx, digests[1], digests[0])
			if err != nil {
				return 0, 0, err
			}
			fmt.Fprintf(w.out, "  %d bytes: a difference of %d, made in %.0f s\n", size, difference, time.Since(began).Seconds())
		}
		began := time.Now()
		if err := w.atelier(ctx, "deploy", model, "--device", d.name, "--timeout", "15m", "-q"); err != nil {
			return 0, 0, err
		}
		hubMemory, hubErr := memoryOf(w.hub.PID())
		agentMemory, agentErr := memoryOf(d.agent.PID())
		if err := errors.Join(hubErr, agentErr); err != nil {
			return 0, 0, err
		}
		hub, agent = hubMemory.peak, agentMemory.peak
		fmt.Fprintf(w.out, "  %d bytes, version %d: there in %.0f s; peaks so far: the hub %.0f MB, the agent %.1f MB\n",
			size, version+1, time.Since(began).Seconds(), hub/1e6, agent/1e6)
	}
	var page struct{ Items []struct{ Way string } }
	if err := w.rest(ctx, http.MethodGet, "/deployments/"+model+"/devices", "", nil, &page); err != nil {
		return 0, 0, err
	}
	if len(page.Items) != 1 || page.Items[0].Way != "difference" {
		return 0, 0, fmt.Errorf("the second version came another way than as a difference: %+v", page)
	}
	return hub, agent, nil
}

// writeHuge writes a safetensors file of random weights and returns its digest; where
// moved is set, those of its last layer are others.
func writeHuge(path string, size int64, moved bool) (digest string, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	layers := int(size / hugeLayer)
	header := []byte("{")
	for i := range layers {
		header = fmt.Appendf(header, `"layer.%d.weight":{"dtype":"F32","shape":[%d],"data_offsets":[%d,%d]},`, i, hugeLayer/4, i*hugeLayer, (i+1)*hugeLayer)
	}
	header[len(header)-1] = '}'
	for len(header)%8 != 0 {
		header = append(header, ' ')
	}
	sum := sha256.New()
	out := io.MultiWriter(f, sum)
	if _, err := out.Write(append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)); err != nil {
		return "", err
	}
	b := make([]byte, 1<<20)
	for i := range layers {
		seed := uint64(i)
		if moved && i == layers-1 {
			seed += 1 << 32
		}
		var key [32]byte
		binary.LittleEndian.PutUint64(key[:], seed)
		random := rand.NewChaCha8(key)
		for range hugeLayer / len(b) {
			if _, err := random.Read(b); err != nil {
				return "", err
			}
			for j := 0; j < len(b); j += 4 { // numbers of about one size, of either sign
				b[j+2], b[j+3] = b[j+2]&0x7f, b[j+3]&0x80|0x3c
			}
			if _, err := out.Write(b); err != nil {
				return "", err
			}
		}
	}
	return fmt.Sprintf("sha256:%x", sum.Sum(nil)), nil
}
