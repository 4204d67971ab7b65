package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/serving"
	"github.com/atelier-edge/atelier/serving/enginetest"
)

// start runs the program on a model, until the test ends, and returns a client for
// it, whose addresses may have any host. It returns when the program is ready.
func start(t testing.TB, model []byte, args ...string) *http.Client {
	t.Helper()
	path := file(t, "model.onnx", model)
	socket := filepath.Join(filepath.Dir(path), "s")
	transport := &http.Transport{MaxIdleConnsPerHost: 100, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	client := &http.Client{Transport: transport}
	startOn(t, client, "http://module", append([]string{"--name", "m", "--model", path, "--runtime", library, "--listen", "unix:" + socket}, args...)...)
	return client
}

// startOn runs the program with args until the test ends, and waits until it is
// ready at the address base.
func startOn(t testing.TB, client *http.Client, base string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("it ended with %v\n%s", err, log.String())
		}
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		resp, err := client.Get(base + "/v2/health/ready")
		if err == nil {
			_ = resp.Body.Close() // its status is all that counts
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("it was never ready: %v", err)
		}
	}
}

// BenchmarkBatching asks a model of 51 MB from 64 clients at a time, one row each, as
// binary tensors.
func BenchmarkBatching(b *testing.B) {
	model := enginetest.Perceptron(784, 3200, 3200, 10)
	const clients, columns = 64, 784
	head := fmt.Sprintf(`{"inputs":[{"name":"x","shape":[1,%d],"datatype":"FP32","parameters":{"binary_data_size":%d}}],"parameters":{"binary_data_output":true}}`, columns, 4*columns)
	body := append([]byte(head), make([]byte, 4*columns)...)
	for _, args := range [][]string{nil, {"--max-batch", "32"}, {"--max-batch", "64"}, {"--max-batch", "64", "--max-delay", "5ms"}} {
		b.Run(fmt.Sprint(args), func(b *testing.B) {
			client := start(b, model, args...)
			var mu sync.Mutex
			var took []time.Duration
			var wg sync.WaitGroup
			left := make(chan struct{}, b.N)
			for range b.N {
				left <- struct{}{}
			}
			close(left)
			ask := func() error {
				req, err := http.NewRequest(http.MethodPost, "http://module/v2/models/m/infer", bytes.NewReader(body))
				if err != nil {
					return err
				}
				req.Header.Set(serving.HeaderLength, strconv.Itoa(len(head)))
				resp, err := client.Do(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					return fmt.Errorf("%s", resp.Status)
				}
				_, err = io.Copy(io.Discard, resp.Body)
				return err
			}
			for range clients { // which then have their connections
				wg.Go(func() {
					if err := ask(); err != nil {
						b.Error(err)
					}
				})
			}
			wg.Wait()
			b.ResetTimer()
			begin := time.Now()
			for range clients {
				wg.Go(func() {
					for range left {
						began := time.Now()
						if err := ask(); err != nil {
							b.Error(err)
							return
						}
						mu.Lock()
						took = append(took, time.Since(began))
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(len(took))/time.Since(begin).Seconds(), "requests/s")
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}
