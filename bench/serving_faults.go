package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	loadedSwitches = 10
	switchLoad     = 5 * time.Second // the load around one switch
	kills          = 10
)

// switchesUnderLoad changes the version of an endpoint while wrk loads it with 64
// clients without a pause, again and again.
func switchesUnderLoad(ctx context.Context, w *world) ([]Figure, error) {
	d, err := oneDevice(ctx, w)
	if err != nil {
		return nil, err
	}
	c, err := w.digitsEndpoint(ctx, 1)
	if err != nil {
		return nil, err
	}
	defer c.close()
	key, err := w.key(ctx, "digits")
	if err != nil {
		return nil, err
	}
	in, err := digitsLoad.v2()
	if err != nil {
		return nil, err
	}
	t := target{url: "http://" + d.gateway + "/digits/v2/models/digits/infer", key: key, in: in}
	if _, err := w.switchTo(ctx, c, 2); err != nil { // brings the content
		return nil, err
	}
	var took, failed []float64
	answered := 0.0
	for i := range loadedSwitches {
		type result struct {
			shot
			err error
		}
		over := make(chan result, 1)
		go func() {
			s, err := w.wrk(ctx, t, 64, switchLoad)
			over <- result{s, err}
		}()
		err := pause(ctx, time.Second)
		var ms float64
		if err == nil {
			ms, err = w.switchTo(ctx, c, 1+i%2)
		}
		if err == nil && len(over) > 0 {
			err = fmt.Errorf("the switch took %.0f ms, longer than the load around it", ms)
		}
		load := <-over
		if err := errors.Join(err, load.err); err != nil {
			return nil, err
		}
		took, failed, answered = append(took, ms), append(failed, float64(load.Failed)), answered+load.Rate*switchLoad.Seconds()
	}
	total := 0.0
	for _, n := range failed {
		total += n
	}
	return []Figure{
		lower(fmt.Sprintf("requests failed in %d switches under a load of 64 clients, of %.0f", loadedSwitches, answered), "requests", []float64{total}).want(0),
		lower("from deploy to the first answer of the new version under that load", "ms", took),
	}, nil
}

// deaths kills a worker of a scoring script each second, while 8 clients ask it.
func deaths(ctx context.Context, w *world) ([]Figure, error) {
	url, key, err := w.endpoint(ctx, scriptLoad)
	if err != nil {
		return nil, err
	}
	in, err := asJSON(scriptLoad.score())
	if err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	var mu sync.Mutex
	var good, lost, other int
	var first string
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for running.Err() == nil {
				status, text := scored(ctx, url+"/score", key, in.body)
				mu.Lock()
				switch {
				case status == http.StatusOK:
					good++
				case status == http.StatusBadGateway && strings.Contains(text, "signal"):
					lost++
				default:
					if other++; first == "" {
						first = fmt.Sprint(status, " ", text)
					}
				}
				mu.Unlock()
			}
		})
	}
	killed := 0
	for range kills {
		if err = pause(ctx, time.Second); err != nil {
			break
		}
		var workers []int
		if workers, err = pythons(w.dir); err != nil {
			break
		}
		if len(workers) > 0 {
			if err = syscall.Kill(workers[rand.IntN(len(workers))], syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				break
			}
			killed++
		}
	}
	stop()
	clients.Wait()
	if err != nil {
		return nil, err
	}
	if killed == 0 || good == 0 {
		return nil, fmt.Errorf("%d workers were killed and %d requests answered; the first that was not: %s", killed, good, first)
	}
	if first != "" {
		fmt.Fprintf(w.out, "  the first request that failed otherwise was answered with %s\n", first)
	}
	return []Figure{
		lower(fmt.Sprintf("requests lost for each worker killed, of %d killed over %d requests, answered with 502 and its reason", killed, good+lost+other), "requests", []float64{float64(lost) / float64(killed)}).want(1),
		lower("requests that failed otherwise meanwhile", "requests", []float64{float64(other)}).want(0),
	}, nil
}

// scored sends one request; status 0 says that none was answered.
func scored(ctx context.Context, url, key string, body []byte) (status int, text string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	req.Header.Set("X-Api-Key", key)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	b, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(b)
}

// pythons lists the processes whose program lies below dir and is an interpreter of
// an environment.
func pythons(dir string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		program, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err == nil && strings.HasPrefix(program, dir+"/") && strings.Contains(filepath.Base(program), "python") {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
