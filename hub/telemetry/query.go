package telemetry

import (
	"context"
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

// scoped is the part of the TSDB that belongs to one workspace. The PromQL
// engine and every route read through it and through nothing else: an expression can
// do much, but all series that it sees come out of Select.
//
// The label that carries the workspace does not exist here: a selector on it
// acts as on any absent label, no answer holds it, and no list names it. That
// every series does carry it, with the right value, is checked once more on its
// way out: a fault in the index would be an error, not a leak.
type scoped struct {
	storage.Queryable
	workspace string // id
}

// Querier implements storage.Queryable.
func (s scoped) Querier(mint, maxt int64) (storage.Querier, error) {
	q, err := s.Queryable.Querier(mint, maxt)
	if err != nil {
		return nil, err
	}
	return &scopedQuerier{q, s.workspace}, nil
}

type scopedQuerier struct {
	inner     storage.Querier
	workspace string
}

// matchers returns what to ask the TSDB for; none is true where a matcher wants
// the hidden label to have a value, which no series here has.
func (q *scopedQuerier) matchers(given []*labels.Matcher) (forced []*labels.Matcher, none bool) {
	forced = make([]*labels.Matcher, 1, len(given)+1)
	forced[0] = labels.MustNewMatcher(labels.MatchEqual, workspaceLabel, q.workspace) // cannot fail: no expression
	for _, m := range given {
		if m.Name != workspaceLabel {
			forced = append(forced, m)
		} else if !m.Matches("") {
			return nil, true
		}
	}
	return forced, false
}

func (q *scopedQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, given ...*labels.Matcher) storage.SeriesSet {
	forced, none := q.matchers(given)
	if none {
		return storage.EmptySeriesSet()
	}
	return &scopedSet{SeriesSet: q.inner.Select(ctx, sorted, hints, forced...), workspace: q.workspace}
}

func (q *scopedQuerier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, given ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	forced, none := q.matchers(given)
	if none || name == workspaceLabel {
		return nil, nil, nil
	}
	return q.inner.LabelValues(ctx, name, hints, forced...)
}

func (q *scopedQuerier) LabelNames(ctx context.Context, hints *storage.LabelHints, given ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	forced, none := q.matchers(given)
	if none {
		return nil, nil, nil
	}
	if hints != nil && hints.Limit > 0 {
		more := *hints
		more.Limit++ // for the one that is hidden
		hints = &more
	}
	names, warnings, err := q.inner.LabelNames(ctx, hints, forced...)
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == workspaceLabel })
	return names, warnings, err
}

func (q *scopedQuerier) Close() error { return q.inner.Close() }

// scopedSet hides the workspace's label of each series.
type scopedSet struct {
	storage.SeriesSet
	workspace string
	err       error
}

func (s *scopedSet) Next() bool {
	if s.err != nil || !s.SeriesSet.Next() {
		return false
	}
	if got := s.SeriesSet.At().Labels().Get(workspaceLabel); got != s.workspace {
		s.err = fmt.Errorf("the index returned a series of another workspace")
		return false
	}
	return true
}

func (s *scopedSet) At() storage.Series { return scopedSeries{s.SeriesSet.At()} }

func (s *scopedSet) Err() error {
	if s.err != nil {
		return s.err
	}
	return s.SeriesSet.Err()
}

type scopedSeries struct{ storage.Series }

func (s scopedSeries) Labels() labels.Labels {
	return labels.NewBuilder(s.Series.Labels()).Del(workspaceLabel).Labels()
}
