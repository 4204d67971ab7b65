package overlay

import (
	"math"
)

// unary makes a table of a function of one number.
func unary(n *node, s *stage) error {
	number := func(name string, otherwise float64) float64 {
		if v, given := n.floats[name]; given {
			return v
		}
		return otherwise
	}
	var f func(float64) float64
	switch n.op {
	case "Sigmoid":
		f = sigmoid
	case "Tanh":
		f = math.Tanh
	case "LeakyRelu":
		alpha := number("alpha", 0.01)
		f = func(x float64) float64 { return max(x, 0) + alpha*min(x, 0) }
	case "Elu":
		alpha := number("alpha", 1)
		f = func(x float64) float64 { return max(x, 0) + alpha*math.Expm1(min(x, 0)) }
	case "HardSigmoid":
		alpha, beta := number("alpha", 0.2), number("beta", 0.5)
		f = func(x float64) float64 { return min(max(alpha*x+beta, 0), 1) }
	case "HardSwish":
		f = func(x float64) float64 { return x * min(max(x/6+0.5, 0), 1) }
	case "Softplus":
		f = func(x float64) float64 { return max(x, 0) + math.Log1p(math.Exp(-math.Abs(x))) }
	case "Abs":
		f = math.Abs
	case "Neg":
		f = func(x float64) float64 { return -x }
	default:
		return unsupported(n, "the operator is unknown")
	}
	if s == nil {
		return unsupported(n, "it does not come after a layer")
	}
	if s.function != nil {
		return unsupported(n, "it comes after another such function")
	}
	s.function, s.middle, s.out = f, s.out, nil
	return nil
}

func sigmoid(x float64) float64 { return 1 / (1 + math.Exp(-x)) }
