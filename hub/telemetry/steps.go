package telemetry

import (
	"fmt"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
)

// maxSteps is how many steps a subquery may have. The engine makes a value for
// each of them before it looks at its own limit of samples or at the clock: ten
// years in steps of a second cost gigabytes and minutes, whatever the timeout.
const maxSteps = 500_000

// defaultStep is that of a subquery that names none.
const defaultStep = time.Minute

// checkSteps refuses a query with a subquery of too many steps.
func checkSteps(q promql.Query) error {
	s, ok := q.Statement().(*parser.EvalStmt)
	if !ok {
		return nil
	}
	var refused error
	parser.Inspect(s.Expr, func(node parser.Node, path []parser.Node) error {
		sub, ok := node.(*parser.SubqueryExpr)
		if !ok {
			return nil
		}
		// It reaches as far back as all those around it together.
		span := s.End.Sub(s.Start) + sub.Range
		for _, outer := range path {
			if o, ok := outer.(*parser.SubqueryExpr); ok {
				span += o.Range
			}
		}
		step := sub.Step
		if step <= 0 {
			step = defaultStep
		}
		if steps := span / step; span < 0 || steps > maxSteps {
			refused = invalidParameter("query", fmt.Errorf("the subquery [%s:%s] has %d steps, at most %d are allowed; make its range shorter or its step longer",
				sub.Range, step, steps, maxSteps))
			return refused
		}
		return nil
	})
	return refused
}
