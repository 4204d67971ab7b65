package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

const (
	registerPairs = 5
	smallModels   = 1000
	connections   = 8
)

// register registers 1,000 small models, each two requests, over eight
// connections; in turn with it the same files are copied and synced one by one
// by coreutils, which is the same promise for the files alone.
func register(ctx context.Context, w *world) ([]Figure, error) {
	if err := w.boot(ctx); err != nil {
		return nil, err
	}
	model, err := os.ReadFile(w.digits(1))
	if err != nil {
		return nil, err
	}
	var took, copied []float64
	for pair := range registerPairs {
		dir := filepath.Join(w.dir, fmt.Sprintf("pair-%d", pair))
		if err := writeModels(dir, pair, model); err != nil {
			return nil, err
		}
		seconds, err := w.registerAll(ctx, dir, pair)
		if err != nil {
			return nil, err
		}
		took = append(took, seconds)
		if seconds, err = copyAndSync(ctx, dir); err != nil {
			return nil, err
		}
		copied = append(copied, seconds)
	}
	const peer = "for f in *.onnx: cp f TO/ && sync TO/f"
	return []Figure{
		lower("1,000 small models registered over REST, 8 connections", "times as long as cp and sync FILE", ratios(took, copied)).beside(peer+", s", copied),
		lower("the same", "s", took).beside(peer+", s", copied),
	}, nil
}

// writeModels writes models that differ in their documentation only.
func writeModels(dir string, pair int, model []byte) error {
	if err := os.MkdirAll(filepath.Join(dir, "copy"), 0o700); err != nil {
		return err
	}
	for i := range smallModels {
		doc := fmt.Sprintf("pair %d, model %d", pair, i)
		content := append(model[:len(model):len(model)], 6<<3|2, byte(len(doc))) // ModelProto.doc_string in onnx.proto3
		if err := os.WriteFile(modelPath(dir, i), append(content, doc...), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func modelPath(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("%04d.onnx", i)) }

// registerAll returns the seconds until the last model is registered.
func (w *world) registerAll(ctx context.Context, dir string, pair int) (float64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	began := time.Now()
	var workers sync.WaitGroup
	for range connections {
		workers.Go(func() {
			for i := range next {
				if err := w.registerOne(ctx, modelPath(dir, i), fmt.Sprintf("small-%d-%d", pair, i)); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range smallModels {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	workers.Wait()
	return time.Since(began).Seconds(), context.Cause(ctx)
}

func (w *world) registerOne(ctx context.Context, path, name string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var blob struct{ Digest string }
	if err := w.rest(ctx, http.MethodPost, "/blobs", "application/octet-stream", content, &blob); err != nil {
		return err
	}
	body := fmt.Appendf(nil, `{"files":[{"path":"model.onnx","digest":%q,"size":%d}]}`, blob.Digest, len(content))
	return w.rest(ctx, http.MethodPost, "/models/"+name+"/versions", "application/json", body, nil)
}

// copyAndSync returns the seconds that coreutils take for the same files.
func copyAndSync(ctx context.Context, dir string) (float64, error) {
	cmd := exec.CommandContext(ctx, "sh", "-c", `for f in *.onnx; do cp "$f" copy/ && sync "copy/$f" || exit 1; done`)
	cmd.Dir = dir
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("cp and sync: %w\n%s", err, out)
	}
	return time.Since(began).Seconds(), nil
}
