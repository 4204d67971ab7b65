package routing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
	"github.com/atelier-edge/atelier/routing/mqtt"
)

// The inputs of every module with a model: their messages go to its model server as
// requests, and the answers come out of the output of the same name.
const (
	inputScore       = "score"
	inputInfer       = "infer"
	inputInvocations = "invocations"
	// outputErrors is where a request comes out that the model server refuses.
	outputErrors = "errors"
)

func isModelInput(input string) bool {
	return input == inputScore || input == inputInfer || input == inputInvocations
}

// modelServer is the sink of a module's model.
type modelServer struct {
	router *Router
	module *module
	name   string
	route  string
	last   *delivery // what was sent before; answers come out in the order of the requests
}

// answerTime is how long a model may take for a message.
const answerTime = 5 * time.Minute

// refusedError says that a message was refused for good.
type refusedError struct{ error }

// closed implements sink. Which rollout answers is looked up with each request.
func (s *modelServer) closed() <-chan struct{} { return nil }

// send implements sink.
func (s *modelServer) send(ctx context.Context, q *queue, m *wire.ModuleMessage, _ uint32) (*delivery, error) {
	done := make(chan struct{})
	d, before := &delivery{done: done}, s.last
	s.last = d
	message := *m
	q.group.Go(func() { // ends with the queue at the latest
		defer close(done)
		d.err = s.ask(ctx, &message, before)
	})
	return d, nil
}

// errBefore says that a message was not taken, since one before it was not.
var errBefore = errors.New("a message before it was not taken")

// behind waits until the message before was taken.
func behind(ctx context.Context, before *delivery) error {
	if before == nil {
		return nil
	}
	select {
	case <-before.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	var refused *refusedError
	if before.err != nil && !errors.As(before.err, &refused) {
		return errBefore
	}
	return nil
}

// ask has a message answered, and puts the answer out. A nil error means that it is kept.
func (s *modelServer) ask(ctx context.Context, m *wire.ModuleMessage, before *delivery) error {
	s.router.mu.Lock()
	socket, model := s.module.Socket, s.module.Model
	s.router.mu.Unlock()
	if socket == "" {
		return errors.New("the module is not ready")
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	path := "/score"
	switch s.route {
	case inputInfer:
		path = "/v2/models/" + model + "/infer"
	case inputInvocations:
		path = "/invocations"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://module"+path, bytes.NewReader(m.Payload))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if m.ContentType != "" {
		req.Header.Set("Content-Type", m.ContentType)
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it is read as far as it is wanted
	body, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxMessagePayload+1))
	if err != nil {
		return err
	}
	if err := behind(ctx, before); err != nil {
		return err
	}
	switch {
	case resp.StatusCode/100 == 5 || resp.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("the model server answered %s", resp.Status)
	case len(body) > wire.MaxMessagePayload:
		return s.refuse(ctx, m, fmt.Appendf(nil, `{"error":"the answer is larger than the %d bytes that a message may have"}`, wire.MaxMessagePayload))
	case resp.StatusCode/100 != 2:
		return s.refuse(ctx, m, body)
	}
	return s.put(ctx, m, s.route, resp.Header.Get("Content-Type"), body)
}

// refuse puts out why a message was refused.
func (s *modelServer) refuse(ctx context.Context, m *wire.ModuleMessage, why []byte) error {
	if err := s.put(ctx, m, outputErrors, "application/json", why); err != nil {
		return err
	}
	return &refusedError{errors.New("the model server refused it")}
}

// put puts out an answer with the properties of what was asked.
func (s *modelServer) put(ctx context.Context, m *wire.ModuleMessage, output, kind string, body []byte) error {
	answer := mqtt.Message{Payload: body, ContentType: kind}
	for _, p := range m.Properties {
		answer.Properties = append(answer.Properties, mqtt.Property(p))
	}
	kept := make(chan error, 1)
	s.router.publish(s.module, s.name, output, answer, func(err error) { kept <- err })
	select {
	case err := <-kept:
		if code := atelier.CodeOf(err); code == atelier.Invalid || code == atelier.TooLarge {
			return &refusedError{err}
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
