package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Query is an answer of the Prometheus API: a vector, matrix, scalar or string.
type Query struct {
	Type   string          `json:"resultType"`
	Result json.RawMessage `json:"result"`
}

// QueryInstant evaluates PromQL at one time; the zero time is now.
func (c *Client) QueryInstant(ctx context.Context, ws, promql string, at time.Time) (Query, error) {
	form := url.Values{"query": {promql}}
	if !at.IsZero() {
		form.Set("time", seconds(at))
	}
	return c.prometheus(ctx, ws, "query", form)
}

// QueryRange evaluates PromQL from start to end, step apart.
func (c *Client) QueryRange(ctx context.Context, ws, promql string, start, end time.Time, step time.Duration) (Query, error) {
	return c.prometheus(ctx, ws, "query_range", url.Values{
		"query": {promql}, "start": {seconds(start)}, "end": {seconds(end)},
		"step": {strconv.FormatFloat(step.Seconds(), 'f', -1, 64)},
	})
}

// LabelValues lists the values of a label in the workspace's telemetry;
// "__name__" gives the metrics.
func (c *Client) LabelValues(ctx context.Context, ws, label string) ([]string, error) {
	var values []string
	return values, c.prometheusGet(ctx, ws, "label/"+url.PathEscape(label)+"/values", nil, &values)
}

func (c *Client) prometheus(ctx context.Context, ws, what string, query url.Values) (Query, error) {
	var q Query
	return q, c.prometheusGet(ctx, ws, what, query, &q)
}

func (c *Client) prometheusGet(ctx context.Context, ws, what string, query url.Values, out any) error {
	path := "/w/" + url.PathEscape(ws) + "/prometheus/api/v1/" + what
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.address(path, query), nil)
	if err != nil {
		return atelier.Errorf(atelier.Invalid, "make a query: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	res, err := c.http.Do(req)
	if err != nil {
		return unreachable(c.base, err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return atelier.Errorf(atelier.Unavailable, "the hub's answer broke off: %w", err)
	}
	// Prometheus has an envelope of its own; what never reached it answers with a problem.
	var answer struct {
		Status    string
		Data      json.RawMessage
		ErrorType string
		Error     string
		Detail    string
		Code      string
		Remedy    string
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return atelier.Errorf(codeOfStatus(res.StatusCode), "the hub answered %s", res.Status)
	}
	if answer.Code != "" {
		return &atelier.Error{Code: atelier.Code(answer.Code), Message: answer.Detail, Remedy: answer.Remedy}
	}
	if answer.Status != "success" {
		err := atelier.Errorf(codeOfStatus(res.StatusCode), "the query was refused (%s): %w", answer.ErrorType, errors.New(answer.Error))
		return err.WithField("query")
	}
	if err := json.Unmarshal(answer.Data, out); err != nil {
		return atelier.Errorf(atelier.Internal, "the answer to the query is not what was expected: %w", err)
	}
	return nil
}

func seconds(t time.Time) string {
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64)
}
