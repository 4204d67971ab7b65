package main

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"github.com/atelier-edge/atelier/internal/collect"
	"github.com/atelier-edge/atelier/serving"
	"github.com/atelier-edge/atelier/serving/http1"
	"github.com/atelier-edge/atelier/serving/lending"
)

// lent answers inferences on connections that a gateway lends.
type lent struct {
	handler *serving.Handler
	paths   []string // of inferences of the one model
	maxBody int64
}

const scorePath = "/score"

func newLent(c config, handler *serving.Handler) *lent {
	base := "/v2/models/" + c.name
	return &lent{handler: handler, paths: []string{scorePath, base + "/infer", base + "/versions/" + c.version + "/infer"}, maxBody: c.maxBody}
}

// Takes implements lending.Handler.
func (l *lent) Takes(r *http1.Request, path []byte) bool {
	return string(r.Method) == "POST" && slices.Contains(l.paths, string(path)) && r.Body.Length <= l.maxBody && field(r, "content-encoding") == ""
}

// Answer implements lending.Handler.
func (l *lent) Answer(ctx context.Context, r *lending.Request) lending.Answer {
	score := string(r.Path) == scorePath
	dialect := collect.DialectV2
	if score {
		dialect = collect.DialectScore
	}
	a := l.handler.Sampled(ctx, dialect, string(r.ID), func(ctx context.Context) serving.Answer {
		if score {
			return l.handler.Score(ctx, r.Body)
		}
		return l.handler.Infer(ctx, field(r.Head, headerLength), r.Body)
	})
	return lending.Answer{Status: a.Status, ContentType: a.ContentType, Fields: a.AppendFields(nil), Body: a.Body}
}

var headerLength = strings.ToLower(serving.HeaderLength)

// field returns the first header field of that name, in lower case.
func field(r *http1.Request, name string) string {
	for _, f := range r.Fields {
		if http1.Is(f.Name, name) {
			return string(f.Value)
		}
	}
	return ""
}

// borrow offers gateways to answer on their clients' connections, where the model
// server listens on a Unix socket. Without that they pass requests on. stop finishes
// the requests that have begun and gives the connections back.
func borrow(listen string, handler lending.Handler, log *slog.Logger) (stop func(context.Context) error) {
	none := func(context.Context) error { return nil }
	path, unix := strings.CutPrefix(listen, "unix:")
	if !unix {
		return none
	}
	listener, err := lending.Listen(path + lending.Suffix)
	if err != nil {
		// A path that is too long for a second socket, perhaps.
		log.Warn("no connections can be borrowed; the gateway passes requests on", "error", err)
		return none
	}
	b := lending.NewBorrower(handler, log)
	served := make(chan error, 1)
	go func() { served <- b.Serve(listener) }()
	return func(ctx context.Context) error {
		if err := b.Shutdown(ctx); err != nil {
			return err
		}
		return <-served
	}
}
