package main

import (
	"context"
	"net/url"
	"strings"
	"sync"
	"time"
)

// loaded is a load on an endpoint, for benchmarks of what happens meanwhile.
type loaded struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu               sync.Mutex
	answered, failed int
	first            error
}

// startLoad sends each call again and again with a pause of 2 ms, which leaves
// the processors to what is measured; calls with true connect anew each time.
func startLoad(ctx context.Context, calls map[*call]bool) *loaded {
	running, cancel := context.WithCancel(ctx)
	l := &loaded{cancel: cancel}
	for c, anew := range calls {
		l.done.Go(func() {
			defer c.close()
			for running.Err() == nil {
				_, err := c.do(context.WithoutCancel(ctx)) // the last one is waited for
				if anew {
					c.close()
				}
				l.count(err)
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	return l
}

func (l *loaded) count(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.answered++
		return
	}
	l.failed++
	if l.first == nil {
		l.first = err
	}
}

func (l *loaded) stop() (answered, failed int) {
	l.cancel()
	l.done.Wait()
	return l.answered, l.failed
}

// split separates an endpoint's URL into the address to connect to and the path.
func split(endpoint string) (address, prefix string, err error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return "", "", err
	}
	return u.Host, strings.TrimRight(u.Path, "/"), nil
}
