// Package onnxruntime runs ONNX models with ONNX Runtime's shared library, which it
// loads at run time and calls without cgo.
//
// Load is the library, Open a model in it. The package knows the library's C
// interface and nothing of protocols.
package onnxruntime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"unsafe"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
)

// Options tune a model. The zero value suits most.
type Options struct {
	// Threads is how many threads share the work of one inference. 0 is one for
	// each processor that the process may use, or one alone where inferences turn out to
	// be so quick that sharing them takes longer.
	Threads int
	// Processors is how many processors' worth of time the process may use, where that is
	// less than the library finds; 0 leaves it to the library.
	Processors int
	// Spin lets those threads wait for work actively for a moment after each
	// inference: quicker answers under load, for processor time when idle.
	Spin bool
	// Providers are the execution providers that the model may run on, the preferred
	// one first, by atelier's names; the processor is always the last.
	Providers []string
}

// Model is one loaded model. It implements serving.Engine.
type Model struct {
	lib       *Library
	path      string
	options   Options
	crew      *crew // nil where the threads are settled
	signature atelier.Signature
	inputs    []port
	outputs   []port
	skipped   []string
	provider  string // what it runs on
	fallback  string // a sentence on what was preferred; "" where nothing was

	mu      sync.RWMutex // held for reading by each Infer, for writing by Close and exchange
	session handle
	closed  bool
}

var _ serving.RowEngine = (*Model)(nil)

// port is an input or output, with its name as the library wants it.
type port struct {
	cname   []byte
	typ     serving.Datatype
	element uintptr // ONNXTensorElementDataType
}

// elementTypes are the library's numbers for element types (enum
// ONNXTensorElementDataType).
var elementTypes = map[serving.Datatype]uintptr{
	serving.FP32: 1, serving.Uint8: 2, serving.Int8: 3, serving.Uint16: 4, serving.Int16: 5, serving.Int32: 6, serving.Int64: 7,
	serving.Bytes: 8, serving.Bool: 9, serving.FP16: 10, serving.FP64: 11, serving.Uint32: 12, serving.Uint64: 13, serving.BF16: 16,
}

// open loads the model on one execution provider.
func (l *Library) open(path, provider string, options Options) (*Model, error) {
	var session handle
	var err error
	loading := threadWork(func() { session, err = l.session(path, provider, options) })
	if atelier.CodeOf(err) == atelier.Unsupported {
		return nil, err
	}
	if err != nil {
		return nil, atelier.Errorf(atelier.Corrupt, "ONNX Runtime %s cannot load the model %s: %w", l.version, path, err).
			WithRemedy("Check the model with the library's own tools, and that this version of the library knows its operators.")
	}
	m := &Model{
		lib: l, path: path, options: options, session: session, provider: provider,
		crew: newCrew(provider, options, loading),
	}
	if err := m.describe(); err != nil {
		l.release(fnReleaseSession, m.session)
		return nil, err
	}
	return m, nil
}

// session loads the model at path on one execution provider.
func (l *Library) session(path, provider string, options Options) (session handle, err error) {
	var opts handle
	if err := l.call(fnCreateSessionOptions, uintptr(unsafe.Pointer(&opts))); err != nil {
		return 0, err
	}
	defer l.release(fnReleaseSessionOptions, opts)
	const optimizeAll = 99 // ORT_ENABLE_ALL
	spin := "0"
	if options.Spin {
		spin = "1"
	}
	threads := options.Threads
	if threads == 0 {
		threads = options.Processors
	}
	key, value := cString("session.intra_op.allow_spinning"), cString(spin)
	err = errors.Join(
		l.call(fnSetSessionGraphOptimizationLevel, opts, optimizeAll),
		l.call(fnSetIntraOpNumThreads, opts, uintptr(threads)),
		l.call(fnSetInterOpNumThreads, opts, 1),
		l.call(fnAddSessionConfigEntry, opts, uintptr(unsafe.Pointer(&key[0])), uintptr(unsafe.Pointer(&value[0]))),
	)
	if err != nil {
		return 0, err
	}
	if provider != atelier.ProviderCPU {
		if err := l.use(opts, provider); err != nil {
			return 0, atelier.Errorf(atelier.Unsupported, "the library refuses the provider: %w", err)
		}
	}
	file := cString(path)
	err = l.call(fnCreateSession, l.env, uintptr(unsafe.Pointer(&file[0])), opts, uintptr(unsafe.Pointer(&session)))
	return session, err
}

// describe reads the model's inputs and outputs.
func (m *Model) describe() error {
	var ins, outs uintptr
	err := errors.Join(
		m.lib.call(fnSessionGetInputCount, m.session, uintptr(unsafe.Pointer(&ins))),
		m.lib.call(fnSessionGetOutputCount, m.session, uintptr(unsafe.Pointer(&outs))),
	)
	if err != nil {
		return atelier.Errorf(atelier.Internal, "cannot read the model's signature: %w", err)
	}
	for i := range ins {
		p, spec, err := m.port(fnSessionGetInputName, fnSessionGetInputTypeInfo, i)
		if err != nil {
			return err
		}
		m.inputs = append(m.inputs, p)
		m.signature.Inputs = append(m.signature.Inputs, spec)
	}
	for i := range outs {
		p, spec, err := m.port(fnSessionGetOutputName, fnSessionGetOutputTypeInfo, i)
		if atelier.CodeOf(err) == atelier.Unsupported {
			m.skipped = append(m.skipped, spec.Name) // the model is of use without it
			continue
		}
		if err != nil {
			return err
		}
		m.outputs = append(m.outputs, p)
		m.signature.Outputs = append(m.signature.Outputs, spec)
	}
	if len(m.outputs) == 0 {
		return atelier.Errorf(atelier.Unsupported, "the model has no output that is a tensor").
			WithRemedy("Export it anew, with tensors as outputs: without ZipMap, for example.")
	}
	return nil
}

// port reads one input or output. The error has the code Unsupported, and the
// spec the name, where it is no tensor.
func (m *Model) port(nameFn, typeFn int, i uintptr) (port, atelier.TensorSpec, error) {
	var cname, info, tensor handle
	fail := func(err error) (port, atelier.TensorSpec, error) {
		return port{}, atelier.TensorSpec{}, atelier.Errorf(atelier.Internal, "cannot read the model's signature: %w", err)
	}
	if err := m.lib.call(nameFn, m.session, i, m.lib.allocator, uintptr(unsafe.Pointer(&cname))); err != nil {
		return fail(err)
	}
	name := goString(cname)
	if err := m.lib.call(fnAllocatorFree, m.lib.allocator, cname); err != nil {
		return fail(err)
	}
	if err := m.lib.call(typeFn, m.session, i, uintptr(unsafe.Pointer(&info))); err != nil {
		return fail(err)
	}
	defer m.lib.release(fnReleaseTypeInfo, info)
	if err := m.lib.call(fnCastTypeInfoToTensorInfo, info, uintptr(unsafe.Pointer(&tensor))); err != nil {
		return fail(err)
	}
	spec := atelier.TensorSpec{Name: name}
	if tensor == 0 {
		return port{}, spec, atelier.Errorf(atelier.Unsupported, "%q of the model is no tensor", name).
			WithRemedy("Export the model anew with tensors only.")
	}
	typ, element, shape, err := m.lib.tensorInfo(tensor)
	if err != nil {
		return port{}, spec, err
	}
	spec.Type, spec.Shape = string(typ), shape
	return port{cname: cString(name), typ: typ, element: element}, spec, nil
}

// tensorInfo reads an OrtTensorTypeAndShapeInfo.
func (l *Library) tensorInfo(info handle) (typ serving.Datatype, element uintptr, shape []int64, err error) {
	var code int32
	var rank uintptr
	err = errors.Join(
		l.call(fnGetTensorElementType, info, uintptr(unsafe.Pointer(&code))),
		l.call(fnGetDimensionsCount, info, uintptr(unsafe.Pointer(&rank))),
	)
	shape = make([]int64, rank)
	if err == nil && rank > 0 {
		err = l.call(fnGetDimensions, info, uintptr(unsafe.Pointer(&shape[0])), rank)
	}
	if err != nil {
		return "", 0, nil, atelier.Errorf(atelier.Internal, "cannot read a tensor's shape: %w", err)
	}
	for typ, element := range elementTypes {
		if element == uintptr(code) {
			return typ, element, shape, nil
		}
	}
	return "", 0, nil, atelier.Errorf(atelier.Unsupported, "the model has a tensor of ONNX's element type %d, which no datatype of Open Inference Protocol stands for", code)
}

// Platform implements serving.Engine.
func (m *Model) Platform() string { return "onnx_onnxv1" }

// Signature implements serving.Engine. Outputs that are no tensors are left out.
func (m *Model) Signature() *atelier.Signature { return &m.signature }

// Skipped names the outputs that are no tensors and cannot be asked for.
func (m *Model) Skipped() []string { return m.skipped }

// Close implements serving.Engine.
func (m *Model) Close() error {
	if m.crew != nil {
		m.crew.changing.Wait()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.closed = true
		m.lib.release(fnReleaseSession, m.session)
	}
	return nil
}

// Infer implements serving.Engine.
func (m *Model) Infer(ctx context.Context, inputs []serving.Tensor, outputs []int) ([]serving.Tensor, error) {
	return m.InferRows(ctx, [][]serving.Tensor{inputs}, outputs)
}

// InferRows implements serving.RowEngine. The rows are put together where the
// library wants to have them, so that they are copied no more often than those of
// one request.
func (m *Model) InferRows(ctx context.Context, parts [][]serving.Tensor, outputs []int) (results []serving.Tensor, err error) {
	if !m.crew.measures() {
		return m.infer(ctx, parts, outputs)
	}
	m.measured(func() error {
		results, err = m.infer(ctx, parts, outputs)
		return err
	})
	return results, err
}

func (m *Model) infer(ctx context.Context, parts [][]serving.Tensor, outputs []int) ([]serving.Tensor, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return nil, atelier.Errorf(atelier.Unavailable, "the model is closed")
	}
	for _, inputs := range parts {
		if len(inputs) != len(m.inputs) {
			return nil, atelier.Errorf(atelier.Invalid, "%d inputs came, %d were expected", len(inputs), len(m.inputs)).WithField("inputs")
		}
	}
	for _, o := range outputs {
		if o < 0 || o >= len(m.outputs) {
			return nil, atelier.Errorf(atelier.Invalid, "output %d was asked for, the model has %d", o, len(m.outputs)).WithField("outputs")
		}
	}
	if len(outputs) == 0 {
		return nil, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, gaveUp(err)
	}
	values := make([]handle, len(m.inputs), len(m.inputs)+len(outputs))
	defer func() {
		for _, v := range values {
			m.lib.release(fnReleaseValue, v)
		}
	}()
	for i := range m.inputs {
		v, err := m.value(parts, i)
		if err != nil {
			return nil, err
		}
		values[i] = v
	}
	values = values[:len(m.inputs)+len(outputs)] // the tail is zero: the library makes those tensors
	if err := m.run(ctx, values[:len(m.inputs)], outputs, values[len(m.inputs):]); err != nil {
		return nil, err
	}
	results := make([]serving.Tensor, len(outputs))
	for i, v := range values[len(m.inputs):] {
		t, err := m.lib.read(v)
		if err != nil {
			return nil, err
		}
		results[i] = t
	}
	return results, nil
}

func gaveUp(err error) error {
	return atelier.Errorf(atelier.Timeout, "the inference was given up: %w", err)
}

// run calls the model; results receives the values of outputs.
func (m *Model) run(ctx context.Context, inputs []handle, outputs []int, results []handle) error {
	var options handle
	if ctx.Done() != nil {
		if err := m.lib.call(fnCreateRunOptions, uintptr(unsafe.Pointer(&options))); err != nil {
			return atelier.Errorf(atelier.Internal, "cannot run the model: %w", err)
		}
		var mu sync.Mutex // the options may go only when nobody is about to use them
		stop := context.AfterFunc(ctx, func() {
			mu.Lock()
			defer mu.Unlock()
			if options != 0 {
				_ = m.lib.call(fnRunOptionsSetTerminate, options) // then the run goes on to its end
			}
		})
		defer func() {
			stop()
			mu.Lock()
			defer mu.Unlock()
			m.lib.release(fnReleaseRunOptions, options)
			options = 0
		}()
	}
	// The library reads the names through these addresses; m keeps the bytes alive.
	names := make([]uintptr, len(inputs)+len(outputs)+1) // never empty
	for i := range inputs {
		names[i] = uintptr(unsafe.Pointer(&m.inputs[i].cname[0]))
	}
	for i, o := range outputs {
		names[len(inputs)+i] = uintptr(unsafe.Pointer(&m.outputs[o].cname[0]))
	}
	err := m.lib.call(fnRun, m.session, options,
		uintptr(unsafe.Pointer(&names[0])), uintptr(unsafe.Pointer(unsafe.SliceData(inputs))), uintptr(len(inputs)),
		uintptr(unsafe.Pointer(&names[len(inputs)])), uintptr(len(outputs)), uintptr(unsafe.Pointer(&results[0])))
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return gaveUp(ctx.Err())
	}
	var status *statusError
	if errors.As(err, &status) && status.code == codeInvalidArgument {
		return atelier.Errorf(atelier.Invalid, "the model refuses the input: %w", err).WithField("inputs")
	}
	return atelier.Errorf(atelier.Internal, "the model failed: %w", err)
}

// value makes an OrtValue with the elements of input i of all parts. The library's
// memory is aligned as its kernels like it; those of a part may begin anywhere in a
// request's body.
func (m *Model) value(parts [][]serving.Tensor, i int) (handle, error) {
	p, name := &m.inputs[i], m.signature.Inputs[i].Name
	bad := func(format string, args ...any) (handle, error) {
		return 0, atelier.Errorf(atelier.Invalid, "input %s %s", name, fmt.Sprintf(format, args...)).WithField("inputs")
	}
	for _, part := range parts {
		if what := misfit(p, &part[i]); what != "" {
			return bad("%s", what)
		}
	}
	shape := parts[0][i].Shape
	if len(parts) > 1 {
		var ok bool
		if shape, ok = joined(parts, i); !ok {
			return bad("has rows that differ in shape, or none")
		}
	}
	n, ok := serving.Elements(shape)
	if !ok {
		return bad("has a shape %v that no tensor can have", shape)
	}
	var v handle
	err := m.lib.call(fnCreateTensorAsOrtValue, m.lib.allocator,
		uintptr(unsafe.Pointer(unsafe.SliceData(shape))), uintptr(len(shape)), p.element, uintptr(unsafe.Pointer(&v)))
	if err != nil {
		return 0, atelier.Errorf(atelier.Internal, "cannot make a tensor for input %s: %w", name, err)
	}
	if n == 0 {
		return v, nil
	}
	if p.typ == serving.Bytes {
		strings := parts[0][i].Strings
		if len(parts) > 1 {
			strings = make([]string, 0, n)
			for _, part := range parts {
				strings = append(strings, part[i].Strings...)
			}
		}
		err = m.lib.fillStrings(v, strings)
	} else {
		var data uintptr
		if err = m.lib.call(fnGetTensorMutableData, v, uintptr(unsafe.Pointer(&data))); err == nil {
			to := unsafe.Slice((*byte)(pointer(data)), n*p.typ.Size())
			for _, part := range parts {
				to = to[copy(to, part[i].Data):]
			}
		}
	}
	if err != nil {
		m.lib.release(fnReleaseValue, v)
		if atelier.CodeOf(err) == atelier.Invalid {
			return bad("%v", err)
		}
		return 0, atelier.Errorf(atelier.Internal, "cannot fill the tensor for input %s: %w", name, err)
	}
	return v, nil
}

// misfit says what of t is not as the input p has it, "" where all is well.
func misfit(p *port, t *serving.Tensor) string {
	n, ok := serving.Elements(t.Shape)
	switch {
	case !ok:
		return fmt.Sprintf("has a shape %v that no tensor can have", t.Shape)
	case t.Type != p.typ:
		return fmt.Sprintf("has datatype %s, %s was expected", t.Type, p.typ)
	case p.typ == serving.Bytes && int64(len(t.Strings)) != n:
		return fmt.Sprintf("has %d strings, shape %v needs %d", len(t.Strings), t.Shape, n)
	case int64(len(t.Data)) != n*p.typ.Size():
		return fmt.Sprintf("has %d bytes, shape %v needs %d", len(t.Data), t.Shape, n*p.typ.Size())
	}
	return ""
}

// joined returns the shape of the rows of input i of all parts, and whether they
// can be rows of one tensor.
func joined(parts [][]serving.Tensor, i int) ([]int64, bool) {
	shape := slices.Clone(parts[0][i].Shape)
	if len(shape) == 0 {
		return nil, false
	}
	for _, part := range parts[1:] {
		t := &part[i]
		if len(t.Shape) == 0 || !slices.Equal(t.Shape[1:], shape[1:]) {
			return nil, false
		}
		shape[0] += t.Shape[0]
	}
	return shape, true
}

// read copies the elements of the tensor v.
func (l *Library) read(v handle) (serving.Tensor, error) {
	fail := func(err error) (serving.Tensor, error) {
		return serving.Tensor{}, atelier.Errorf(atelier.Internal, "cannot read an output: %w", err)
	}
	var info handle
	if err := l.call(fnGetTensorTypeAndShape, v, uintptr(unsafe.Pointer(&info))); err != nil {
		return fail(err)
	}
	defer l.release(fnReleaseTensorTypeAndShapeInfo, info)
	typ, _, shape, err := l.tensorInfo(info)
	if err != nil {
		return fail(err)
	}
	t := serving.Tensor{Type: typ, Shape: shape}
	n, ok := serving.Elements(shape)
	if !ok {
		return fail(fmt.Errorf("its shape is %v", shape))
	}
	if typ == serving.Bytes {
		t.Strings, err = l.readStrings(v, int(n))
	} else if t.Data = make([]byte, n*typ.Size()); n > 0 {
		var data uintptr
		if err = l.call(fnGetTensorMutableData, v, uintptr(unsafe.Pointer(&data))); err == nil {
			copy(t.Data, unsafe.Slice((*byte)(pointer(data)), len(t.Data)))
		}
	}
	if err != nil {
		return fail(err)
	}
	return t, nil
}
