package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

// maxForm is the largest body of a request in bytes: long expressions come in forms.
const maxForm = 1 << 20

// maxPoints is how many steps a range query may have, as in Prometheus.
const maxPoints = 11000

// api answers Prometheus' HTTP API for one workspace, as its clients know it
// (https://prometheus.io/docs/prometheus/latest/querying/api/).
type api struct {
	store     *Store
	workspace string
	source    storage.Queryable
}

// call is one route: it returns what stands under "data" and what to warn of.
type call func(ctx context.Context, r *http.Request) (data any, warnings annotations.Annotations, err error)

// Handler returns the Prometheus API of one workspace (its id), with paths from
// "/api/v1/…" on. Whoever mounts it has authorized its caller.
func (s *Store) Handler(workspace string) http.Handler {
	a := &api{store: s, workspace: workspace, source: scoped{s.db, workspace}}
	mux := http.NewServeMux()
	for path, c := range map[string]call{
		"/query": a.query, "/query_range": a.queryRange, "/series": a.series, "/labels": a.labelNames,
	} {
		mux.Handle("GET /api/v1"+path, s.answer(c))
		mux.Handle("POST /api/v1"+path, s.answer(c))
	}
	mux.Handle("GET /api/v1/label/{name}/values", s.answer(a.labelValues))
	mux.Handle("GET /api/v1/metadata", s.answer(a.metadata))
	mux.Handle("GET /api/v1/status/buildinfo", s.answer(a.buildInfo))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, &apiError{kindNotFound, fmt.Errorf("there is no %s %s here; see /docs for what there is", r.Method, r.URL.Path)})
	})
	return mux
}

// answer bounds a call in time, number and size, and writes what it returns.
func (s *Store) answer(c call) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if err := r.ParseForm(); err != nil {
			writeError(w, badData("cannot parse the form: %w", err))
			return
		}
		timeout := s.cfg.QueryTimeout
		if text := r.FormValue("timeout"); text != "" {
			d, err := parseDuration(text)
			if err != nil {
				writeError(w, invalidParameter("timeout", err))
				return
			}
			timeout = min(timeout, d)
		}
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		case <-ctx.Done():
			writeError(w, &apiError{kindTimeout, errors.New("query timed out in the queue: too many queries run at once")})
			return
		}
		// A hub that closes its store lets no query begin, and waits for none to read what is gone.
		if err := s.queries.enter(); err != nil {
			writeError(w, &apiError{kindUnavailable, err})
			return
		}
		defer s.queries.leave()
		data, warnings, err := c(ctx, r)
		if err != nil {
			writeError(w, err)
			return
		}
		writeAnswer(w, data, warnings, r.FormValue("query"))
	})
}

func (a *api) query(ctx context.Context, r *http.Request) (any, annotations.Annotations, error) {
	limit, err := limitOf(r)
	if err != nil {
		return nil, nil, err
	}
	at, err := timeOf(r, "time", a.store.cfg.Now())
	if err != nil {
		return nil, nil, err
	}
	opts, err := optionsOf(r)
	if err != nil {
		return nil, nil, err
	}
	q, err := a.store.engine.NewInstantQuery(ctx, a.source, opts, r.FormValue("query"), at)
	if err != nil {
		return nil, nil, invalidParameter("query", err)
	}
	return run(ctx, q, limit)
}

func (a *api) queryRange(ctx context.Context, r *http.Request) (any, annotations.Annotations, error) {
	limit, err := limitOf(r)
	if err != nil {
		return nil, nil, err
	}
	start, err := parseTime(r.FormValue("start"))
	if err != nil {
		return nil, nil, invalidParameter("start", err)
	}
	end, err := parseTime(r.FormValue("end"))
	if err != nil {
		return nil, nil, invalidParameter("end", err)
	}
	if end.Before(start) {
		return nil, nil, invalidParameter("end", errors.New("end timestamp must not be before start time"))
	}
	step, err := parseDuration(r.FormValue("step"))
	if err != nil {
		return nil, nil, invalidParameter("step", err)
	}
	if step <= 0 {
		return nil, nil, invalidParameter("step", errors.New("zero or negative query resolution step widths are not accepted. Try a positive integer"))
	}
	if end.Sub(start)/step > maxPoints {
		return nil, nil, badData("exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)")
	}
	opts, err := optionsOf(r)
	if err != nil {
		return nil, nil, err
	}
	q, err := a.store.engine.NewRangeQuery(ctx, a.source, opts, r.FormValue("query"), start, end, step)
	if err != nil {
		return nil, nil, invalidParameter("query", err)
	}
	return run(ctx, q, limit)
}

// run executes a query and copies its result, which is the engine's again
// when the query is closed.
func run(ctx context.Context, q promql.Query, limit int) (any, annotations.Annotations, error) {
	defer q.Close()
	if err := checkSteps(q); err != nil {
		return nil, nil, err
	}
	res := q.Exec(ctx)
	if res.Err != nil {
		return nil, nil, res.Err
	}
	warnings := res.Warnings
	value := res.Value
	truncated := false
	switch v := value.(type) {
	case promql.Vector:
		if truncated = limit > 0 && len(v) > limit; truncated {
			value = v[:limit]
		}
	case promql.Matrix:
		if truncated = limit > 0 && len(v) > limit; truncated {
			value = v[:limit]
		}
	}
	if truncated {
		warnings = warnings.Add(errTruncated)
	}
	return encoded(appendResult(nil, value)), warnings, nil
}

var errTruncated = errors.New("results truncated due to limit")

func (a *api) series(ctx context.Context, r *http.Request) (any, annotations.Annotations, error) {
	if len(r.Form["match[]"]) == 0 {
		return nil, nil, badData("no match[] parameter provided")
	}
	sel, err := a.selection(r)
	if err != nil {
		return nil, nil, err
	}
	q, err := a.source.Querier(sel.start, sel.end)
	if err != nil {
		return nil, nil, err
	}
	defer q.Close() // only read
	hints := &storage.SelectHints{Start: sel.start, End: sel.end, Func: "series"}
	var sets []storage.SeriesSet
	for _, m := range sel.matchers {
		sets = append(sets, q.Select(ctx, true, hints, m...))
	}
	set := storage.NewMergeSeriesSet(sets, 0, storage.ChainedSeriesMerge)
	out, warnings := []labels.Labels{}, annotations.Annotations(nil)
	for n := 0; set.Next(); n++ {
		if n%256 == 0 && ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		if sel.limit > 0 && len(out) == sel.limit {
			warnings = warnings.Add(errTruncated)
			break
		}
		if len(out) >= a.store.cfg.MaxSamples {
			return nil, nil, errors.New("the answer has too many series; use narrower matchers")
		}
		out = append(out, set.At().Labels().Copy()) // the TSDB's own end with the querier
	}
	return out, warnings.Merge(set.Warnings()), set.Err()
}

func (a *api) labelNames(ctx context.Context, r *http.Request) (any, annotations.Annotations, error) {
	return a.list(ctx, r, func(q storage.Querier, hints *storage.LabelHints, m []*labels.Matcher) ([]string, annotations.Annotations, error) {
		return q.LabelNames(ctx, hints, m...)
	})
}

func (a *api) labelValues(ctx context.Context, r *http.Request) (any, annotations.Annotations, error) {
	name := r.PathValue("name")
	if strings.HasPrefix(name, "U__") {
		name = model.UnescapeName(name, model.ValueEncodingEscaping)
	}
	if !model.UTF8Validation.IsValidLabelName(name) {
		return nil, nil, badData("invalid label name: %q", name)
	}
	return a.list(ctx, r, func(q storage.Querier, hints *storage.LabelHints, m []*labels.Matcher) ([]string, annotations.Annotations, error) {
		return q.LabelValues(ctx, name, hints, m...)
	})
}

// list returns the names or values that ask finds for any of the request's
// selectors, or for all series where there are none.
func (a *api) list(ctx context.Context, r *http.Request, ask func(storage.Querier, *storage.LabelHints, []*labels.Matcher) ([]string, annotations.Annotations, error)) (any, annotations.Annotations, error) {
	sel, err := a.selection(r)
	if err != nil {
		return nil, nil, err
	}
	q, err := a.source.Querier(sel.start, sel.end)
	if err != nil {
		return nil, nil, err
	}
	defer q.Close() // only read
	if len(sel.matchers) == 0 {
		sel.matchers = [][]*labels.Matcher{nil}
	}
	out, warnings := []string{}, annotations.Annotations(nil)
	for _, m := range sel.matchers {
		found, warn, err := ask(q, &storage.LabelHints{}, m)
		if err != nil {
			return nil, nil, err
		}
		for _, s := range found {
			out = append(out, strings.Clone(s)) // the TSDB's own ends with the querier
		}
		warnings = warnings.Merge(warn)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if sel.limit > 0 && len(out) > sel.limit {
		out, warnings = out[:sel.limit], warnings.Add(errTruncated)
	}
	return out, warnings, ctx.Err()
}

// selection is what the routes on series and labels share.
type selection struct {
	start, end int64 // milliseconds since 1970
	limit      int
	matchers   [][]*labels.Matcher
}

func (a *api) selection(r *http.Request) (s selection, err error) {
	if s.limit, err = limitOf(r); err != nil {
		return s, err
	}
	start, err := timeOf(r, "start", minTime)
	if err != nil {
		return s, err
	}
	end, err := timeOf(r, "end", maxTime)
	if err != nil {
		return s, err
	}
	s.start, s.end = start.UnixMilli(), end.UnixMilli()
	if s.matchers, err = a.store.parser.ParseMetricSelectors(r.Form["match[]"]); err != nil {
		return s, invalidParameter("match[]", err)
	}
	for _, set := range s.matchers {
		if !slices.ContainsFunc(set, func(m *labels.Matcher) bool { return m != nil && !m.Matches("") }) {
			return s, invalidParameter("match[]", errors.New("match[] must contain at least one non-empty matcher"))
		}
	}
	return s, nil
}

func (a *api) metadata(_ context.Context, r *http.Request) (any, annotations.Annotations, error) {
	limit := -1
	for _, name := range []string{"limit", "limit_per_metric"} { // a metric has one description here
		if text := r.FormValue(name); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil {
				return nil, nil, badData("%s must be a number", name)
			}
			if name == "limit" {
				limit = n
			}
		}
	}
	return a.store.metadata.list(a.workspace, r.FormValue("metric"), limit), nil, nil
}

// buildInfo tells clients which Prometheus' ways this speaks.
func (a *api) buildInfo(context.Context, *http.Request) (any, annotations.Annotations, error) {
	return map[string]string{
		"version": prometheusVersion(), "revision": "", "branch": "", "buildUser": "", "buildDate": "", "goVersion": runtime.Version(),
	}, nil, nil
}

// prometheusVersion returns the version of the Prometheus that the engine is of:
// the module's v0.316.0 is Prometheus 3.16.0.
var prometheusVersion = sync.OnceValue(func() string {
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, dep := range info.Deps {
			var minor, patch int
			if dep.Path != "github.com/prometheus/prometheus" {
				continue
			}
			if _, err := fmt.Sscanf(dep.Version, "v0.%d.%d", &minor, &patch); err == nil {
				return fmt.Sprintf("%d.%d.%d", minor/100, minor%100, patch)
			}
		}
	}
	return "3.0.0" // built without module information; all that is answered here is as old
})
