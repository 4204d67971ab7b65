package python

import (
	"context"
	"net/http"
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/compare"
)

// How the latency of golden inputs is taken: over as many runs as there is time for,
// and at least some.
const (
	goldenTime = 2 * time.Second
	goldenRuns = 20
)

// goldenID is the id under which the log has what a script says of golden inputs.
const goldenID = "golden"

// Prove sends the script its golden inputs, those of atelier.GoldenScore, and returns the
// median time that they take where g bounds it. An answer that is not what is expected gives
// an *atelier.Error with the code Conflict, which names the case and the place, and so does
// a script that takes longer than it may, or fails.
func (p *Pool) Prove(ctx context.Context, g *atelier.Golden) (time.Duration, error) {
	for i := range g.Cases {
		c := &g.Cases[i]
		a, err := p.golden(ctx, c)
		if err != nil {
			return 0, err
		}
		want := compare.Answer{Status: http.StatusOK, Type: "application/json", Body: c.Response}
		got := compare.Answer{Status: a.Status, Type: "application/json", Body: a.Body}
		if off := compare.Between(&want, &got, "this version", g.Of(c)); off != "" {
			return 0, atelier.Errorf(atelier.Conflict, "golden input %q: of what was expected, %s", c.Name, off)
		}
	}
	if g.Latency() == 0 {
		return 0, nil
	}
	var took []time.Duration
	for begin := time.Now(); len(took) < goldenRuns || len(took) < len(g.Cases) && time.Since(begin) < goldenTime; {
		at := time.Now()
		if _, err := p.golden(ctx, &g.Cases[len(took)%len(g.Cases)]); err != nil {
			return 0, err
		}
		took = append(took, time.Since(at))
	}
	slices.Sort(took)
	median := took[len(took)/2]
	if median > g.Latency() {
		return median, atelier.Errorf(atelier.Conflict, "golden inputs take %v here at the median, at most %v were expected", median.Round(time.Microsecond), g.Latency())
	}
	return median, nil
}

// golden sends the script one golden input.
func (p *Pool) golden(ctx context.Context, c *atelier.GoldenCase) (*Answer, error) {
	a, err := p.Do(ctx, &Request{
		ID: goldenID, Method: http.MethodPost, Type: "application/json", Body: c.Request,
		Headers: func() [][2]string { return [][2]string{{"Content-Type", "application/json"}} },
	})
	switch {
	case err != nil:
		return nil, atelier.Errorf(atelier.CodeOf(err), "golden input %q: %w", c.Name, err)
	case a.Message != "":
		return nil, atelier.Errorf(atelier.Conflict, "golden input %q: %s", c.Name, a.Message)
	case a.Raised != "":
		return nil, atelier.Errorf(atelier.Conflict, "golden input %q: run() of the scoring script raised %s\n%s", c.Name, a.Error, a.Traceback)
	case a.Failed:
		return nil, atelier.Errorf(atelier.Conflict, "golden input %q: run() of the scoring script returned a %s, which is no JSON", c.Name, a.Returned)
	}
	return a, nil
}
