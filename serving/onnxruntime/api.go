package onnxruntime

import (
	"strings"
	"unsafe"

	"github.com/ebitengine/purego"

	atelier "github.com/atelier-edge/atelier"
)

// apiVersion is the version of ONNX Runtime's C interface that is asked for. A
// library serves all versions up to its own: 17 came with ONNX Runtime 1.17.
const apiVersion = 17

// The positions of functions in the table OrtApi of onnxruntime_c_api.h. The
// header promises that positions never change once released: everything up to 101
// shipped with version 1, AddSessionConfigEntry with version 5, all others with version
// 12 or before.
const (
	fnGetErrorCode                     = 1
	fnGetErrorMessage                  = 2
	fnCreateEnv                        = 3
	fnDisableTelemetryEvents           = 6
	fnCreateSession                    = 7
	fnRun                              = 9
	fnCreateSessionOptions             = 10
	fnSetSessionGraphOptimizationLevel = 23
	fnSetIntraOpNumThreads             = 24
	fnSetInterOpNumThreads             = 25
	fnSessionGetInputCount             = 30
	fnSessionGetOutputCount            = 31
	fnSessionGetInputTypeInfo          = 33
	fnSessionGetOutputTypeInfo         = 34
	fnSessionGetInputName              = 36
	fnSessionGetOutputName             = 37
	fnCreateRunOptions                 = 39
	fnRunOptionsSetTerminate           = 46
	fnCreateTensorAsOrtValue           = 48
	fnGetTensorMutableData             = 51
	fnFillStringTensor                 = 52
	fnGetStringTensorDataLength        = 53
	fnGetStringTensorContent           = 54
	fnCastTypeInfoToTensorInfo         = 55
	fnGetTensorElementType             = 60
	fnGetDimensionsCount               = 61
	fnGetDimensions                    = 62
	fnGetTensorTypeAndShape            = 65
	fnAllocatorFree                    = 76
	fnGetAllocatorWithDefaultOptions   = 78
	fnReleaseStatus                    = 93
	fnReleaseSession                   = 95
	fnReleaseValue                     = 96
	fnReleaseRunOptions                = 97
	fnReleaseTypeInfo                  = 98
	fnReleaseTensorTypeAndShapeInfo    = 99
	fnReleaseSessionOptions            = 100
	fnGetAvailableProviders            = 125
	fnReleaseAvailableProviders        = 126
	fnAddSessionConfigEntry            = 130
	fnAppendTensorRT                   = 170
	fnCreateTensorRTProviderOptions    = 171
	fnReleaseTensorRTProviderOptions   = 174
	fnAppendCUDA                       = 204
	fnCreateCUDAProviderOptions        = 205
	fnReleaseCUDAProviderOptions       = 208
	fnAppendExecutionProvider          = 216
	fnCount                            = 217
)

// handle is a pointer to one of the library's objects, which Go never looks into.
type handle = uintptr

// Library is ONNX Runtime's shared library, loaded into this process. It stays
// loaded until the process ends: the library does not support being unloaded.
type Library struct {
	fn        *[fnCount]uintptr
	env       handle
	allocator handle
	version   string
}

// Load loads the shared library at path. Where it cannot, the error has the code
// Unsupported and says why.
func Load(path string) (*Library, error) {
	refuse := func(format string, args ...any) error {
		return atelier.Errorf(atelier.Unsupported, "ONNX Runtime's library "+path+" "+format, args...).
			WithRemedy("It needs Linux on x64 or arm64 with glibc 2.28 or newer and libstdc++; install a fitting one as a runtime.")
	}
	lib, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, refuse("cannot be loaded: %w", err)
	}
	symbol, err := purego.Dlsym(lib, "OrtGetApiBase")
	if err != nil {
		return nil, refuse("is none: %w", err)
	}
	// struct OrtApiBase { const OrtApi* (*GetApi)(uint32_t); const char* (*GetVersionString)(); }
	base, _, _ := purego.SyscallN(symbol)
	functions := (*[2]uintptr)(pointer(base))
	text, _, _ := purego.SyscallN(functions[1])
	version := goString(text)
	api, _, _ := purego.SyscallN(functions[0], apiVersion)
	if api == 0 {
		return nil, refuse("is of version %s, which is too old: version 1.%d or newer is needed", version, apiVersion)
	}
	l := &Library{fn: (*[fnCount]uintptr)(pointer(api)), version: version}
	const logFatal = 4 // ORT_LOGGING_LEVEL_FATAL; errors come back with their words, no need to print them too
	name := cString("atelier")
	if err := l.call(fnCreateEnv, logFatal, uintptr(unsafe.Pointer(&name[0])), uintptr(unsafe.Pointer(&l.env))); err != nil {
		return nil, refuse("cannot be set up: %w", err)
	}
	if err := l.call(fnDisableTelemetryEvents, l.env); err != nil {
		return nil, refuse("cannot be set up: %w", err)
	}
	if err := l.call(fnGetAllocatorWithDefaultOptions, uintptr(unsafe.Pointer(&l.allocator))); err != nil {
		return nil, refuse("cannot be set up: %w", err)
	}
	return l, nil
}

// Version returns the library's version, such as "1.32.0".
func (l *Library) Version() string { return l.version }

// statusError is what the library says when a call fails.
type statusError struct {
	code    int // OrtErrorCode
	message string
}

func (e *statusError) Error() string { return e.message }

// The error codes (OrtErrorCode) that make a difference here.
const codeInvalidArgument = 2

// call calls a function of the table that returns an OrtStatus. Arguments are
// integers, handles, or uintptr(unsafe.Pointer(…)) written in the call itself: the
// directive keeps those objects alive, and on the heap where they do not move,
// until the call returns.
//
//go:uintptrescapes
func (l *Library) call(fn int, args ...uintptr) error {
	status, _, _ := purego.SyscallN(l.fn[fn], args...)
	if status == 0 {
		return nil
	}
	code, _, _ := purego.SyscallN(l.fn[fnGetErrorCode], status)
	text, _, _ := purego.SyscallN(l.fn[fnGetErrorMessage], status)
	err := &statusError{code: int(uint32(code)), message: strings.TrimSpace(goString(text))}
	l.release(fnReleaseStatus, status)
	return err
}

// release calls one of the functions that free an object; 0 is nothing to free.
func (l *Library) release(fn int, h handle) {
	if h != 0 {
		purego.SyscallN(l.fn[fn], h)
	}
}

// pointer turns an address of the library's memory into a pointer. The detour
// tells go vet that the address is no Go object's.
func pointer(address uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }

// cString returns s with a zero at its end.
func cString(s string) []byte { return append([]byte(s), 0) }

// goString copies the zero-terminated string at address.
func goString(address uintptr) string {
	if address == 0 {
		return ""
	}
	p := pointer(address)
	n := 0
	for *(*byte)(unsafe.Add(p, n)) != 0 {
		n++
	}
	return string(unsafe.Slice((*byte)(p), n))
}
