package main

import (
	"context"
	"log/slog"
	"strings"

	"github.com/atelier-edge/atelier/internal/collect"
)

// sampler lets the device's agent ask for records of requests, where the model server
// listens on a Unix socket; nothing is recorded before it does. stop hands over what
// waits for the agent.
func sampler(c config, log *slog.Logger) (s *collect.Sampler, stop func()) {
	none := func() {}
	path, unix := strings.CutPrefix(c.listen, "unix:")
	if !unix {
		return nil, none
	}
	listener, err := collect.Listen(path + collect.Suffix)
	if err != nil {
		// A path that is too long for another socket, perhaps.
		log.Warn("no data can be collected", "error", err)
		return nil, none
	}
	s = collect.NewSampler(log)
	served := make(chan error, 1)
	go func() { served <- s.Serve(listener) }()
	return s, func() {
		ctx, cancel := context.WithTimeout(context.Background(), handOverTime)
		defer cancel()
		s.Close(ctx)
		if err := <-served; err != nil {
			log.Warn("no data were collected", "error", err)
		}
	}
}
