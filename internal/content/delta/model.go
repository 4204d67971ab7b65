package delta

// counter is an adaptive probability of a 1: 22 bits of it, and 10 bits that count
// how often it was used, so that it learns fast at first and then settles.
type counter uint32

const half counter = 1 << 31

// recip[n] is what part of the error a counter that was used n times takes over, in
// units of 2^-16.
var recip = func() (t [1024]uint32) {
	for n := range t {
		t[n] = uint32(65536*2) / uint32(2*n+3)
	}
	return t
}()

// p returns the probability in units of 2^-16, never 0 or 1.
func (c counter) p() uint32 {
	p := uint32(c) >> 16
	return min(max(p, 1), 65535)
}

// stretch returns the probability in the logistic domain.
func (c counter) stretch() int32 { return int32(stretched[c>>20]) }

// update moves the counter towards bit. The higher limit is, up to 1023, the longer
// it remembers.
func (c *counter) update(bit int, limit uint32) {
	v := uint32(*c)
	n := v & 1023
	p := v >> 10
	step := recip[n]
	if bit != 0 {
		p += uint32(uint64(1<<22-1-p) * uint64(step) >> 16)
	} else {
		p -= uint32(uint64(p) * uint64(step) >> 16)
	}
	if n < limit {
		n++
	}
	*c = counter(p<<10 | n)
}

// fill makes counters new.
func fill(t []counter) {
	for i := range t {
		t[i] = half
	}
}

// adaptive codes a bit by one counter.
func (c *coder) adaptive(bit int, t *counter, limit uint32) int {
	bit = c.bit(bit, t.p())
	t.update(bit, limit)
	return bit
}

// The logistic domain: 256 units are 1. Everything is integers, since floating
// point may be fused, and so differ, on other processors.

// sigmoid is 65536/(1+e^-x) for x from -8 in steps of 1/2.
var sigmoid = [33]int32{
	22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768,
	40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500, 65514,
}

// squash turns x into a probability in units of 2^-16.
func squash(x int32) int32 {
	x = min(max(x, -2047), 2047)
	i := (x + 2048) >> 7
	f := x & 127
	return (sigmoid[i]*(128-f) + sigmoid[i+1]*f) >> 7
}

// stretched is the inverse of squash, by the upper 12 bits of the probability.
var stretched = func() (t [4096]int16) {
	i := 0
	for x := int32(-2047); x <= 2047; x++ {
		for v := int(squash(x)) >> 4; i <= v; i++ {
			t[i] = int16(x)
		}
	}
	for ; i < len(t); i++ {
		t[i] = 2047
	}
	return t
}()

// inputs is how many predictions a mixer can take.
const inputs = 12

// mixer joins several predictions into one, by weights that follow what turned out
// right (logistic mixing, as in Mahoney's PAQ).
type mixer struct {
	weights []int32 // inputs per set, in units of 2^-16
	first   int32   // what they start with
	rate    int32   // how fast they follow
	n       int
	x       [inputs]int32
}

func newMixer(sets int, first, rate int32) mixer {
	return mixer{weights: make([]int32, sets*inputs), first: first, rate: rate}
}

// reset makes the weights new.
func (m *mixer) reset() {
	for i := range m.weights {
		m.weights[i] = m.first
	}
}

// add gives the mixer a prediction, in the logistic domain, for the bit that mix
// codes next.
func (m *mixer) add(x int32) {
	m.x[m.n] = x
	m.n++
}

// mix codes a bit by the predictions added, with the weights of the given set, and
// lets the weights learn it.
func (m *mixer) mix(c *coder, bit, set int) int {
	x := m.x[:m.n]
	w := m.weights[set*inputs:][:len(x)]
	m.n = 0
	var dot int64
	for i := range x {
		dot += int64(x[i]) * int64(w[i])
	}
	p := squash(int32(min(max(dot>>16, -2047), 2047)))
	bit = c.bit(bit, uint32(p))
	miss := int64(int32(bit)<<16-p) * int64(m.rate)
	for i := range x {
		w[i] += int32((int64(x[i])*miss + 1<<17) >> 18)
	}
	return bit
}

// three codes a bit by three counters, and lets them learn it: what add, mix and
// update do, in one go, where most of the time is spent.
func (m *mixer) three(c *coder, bit, set int, c0, c1, c2 *counter) int {
	w := m.weights[set*inputs:][:3:3]
	x0, x1, x2 := int64(c0.stretch()), int64(c1.stretch()), int64(c2.stretch())
	dot := x0*int64(w[0]) + x1*int64(w[1]) + x2*int64(w[2])
	p := squash(int32(min(max(dot>>16, -2047), 2047)))
	bit = c.bit(bit, uint32(p))
	miss := int64(int32(bit)<<16-p) * int64(m.rate)
	w[0] += int32((x0*miss + 1<<17) >> 18)
	w[1] += int32((x1*miss + 1<<17) >> 18)
	w[2] += int32((x2*miss + 1<<17) >> 18)
	c0.update(bit, settled)
	c1.update(bit, settled)
	c2.update(bit, settled)
	return bit
}
