// The model's forward pass on a CPU, for inference: one call a step, whatever the number of rows and tokens.
//
// `cpu_forward.py` compiles this file once a machine, lays the weights out and calls `forward_*`. The mathematics is
// that of gpt.py, which remains the reference (tests/test_cpu_forward.py compares the two). Why it exists: a token of
// batch 1 reads every weight once, so the speed of memory is the limit, and a framework's hundred small operators a
// token stay far below it. Here a token is one call, and weights may be bfloat16 or int8 on any CPU.
//
// Tokens come as one flat list; each belongs to a row of the cache and has a position in it, so prompts of any lengths
// and single tokens go together without padding. Every sum has one fixed order, whatever else is in the list and
// however many threads there are: a token's logits are the same bits alone, in a batch, and in any split of a prompt.
//
// (So the compiler may not contract a * b + c as it likes: it is `fma` or it is not.)
//
// Vectors are those of GCC and Clang (`vector_size`): AVX-512, AVX2 and NEON from one source.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int PANEL = 16;              // output columns that are stored side by side: weights are (N / PANEL, K, PANEL)
constexpr int PARTS = PANEL / LANES;   // vectors a panel
constexpr int UNIT = 4;                // panels that a thread takes at a time
constexpr int AHEAD = 2048;            // bytes of weights that are fetched before they are needed
constexpr int TILE = 6;                // rows that share a load of the weights: TILE * PARTS sums stay in registers

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4)));  // aligned(4): any float's address will do
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint16_t half_vec __attribute__((vector_size(LANES * 2), aligned(2)));
typedef int8_t byte_vec __attribute__((vector_size(LANES), aligned(1)));

// ------------------------------------------------------------------ numbers in memory -> float32

struct bf16 { uint16_t bits; };

inline vec load(const float* p) { return *(const vec*)p; }
#if defined(__AVX512F__)  // intrinsics for what the plain forms below mean: GCC 12 makes a dozen instructions of those
inline vec load(const bf16* p) {
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((__m256i*)p)), 16);
}
inline vec load(const int8_t* p) { return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((__m128i*)p))); }
inline vec fma(vec a, vec b, vec c) { return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif defined(__AVX2__) && defined(__FMA__)
inline vec load(const bf16* p) {
    return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((__m128i*)p)), 16);
}
inline vec load(const int8_t* p) { return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((__m128i*)p))); }
inline vec fma(vec a, vec b, vec c) { return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
inline vec load(const bf16* p) { return (vec)(__builtin_convertvector(*(const half_vec*)p, ivec) << 16); }
inline vec load(const int8_t* p) { return __builtin_convertvector(*(const byte_vec*)p, vec); }
inline vec fma(vec a, vec b, vec c) {
    for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
}
#endif
inline vec all(float x) { return x - vec{}; }  // x in all lanes (x + 0 would be an addition: -0 + 0 is 0)
inline void store(float* p, vec x) { *(vec*)p = x; }

inline float number(float x) { return x; }
inline float number(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
inline void put(float* p, float x) { *p = x; }
inline void put(bf16* p, float x) {  // round to nearest, ties to even, as PyTorch does; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    p->bits = x == x ? uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) : uint16_t(0x7FC0);
}

inline float sum(vec x) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += x[i];
    return s;
}

// For x <= 0: exp(x) = power * (1 + part), a power of two and exp(r) - 1 with r in [-ln2/2, ln2/2] by its Taylor series
// to r^7. The two parts are kept apart so that exp(x) - 1 can be had without cancellation.
struct Exp {
    vec power, part;
    vec value() const { return fma(power, part, power); }
    vec minus_1() const { return fma(power, part, power - 1.0f); }
};

inline Exp exp_negative(vec x) {
    x = x < -87.0f ? vec{} - 87.0f : x;
    vec n = x * 1.44269504f;
    ivec whole = __builtin_convertvector(n - 0.5f, ivec);  // truncates towards zero: n <= 0, so this rounds to nearest
    n = __builtin_convertvector(whole, vec);
    vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts (Cody and Waite)
    vec p = all(1 / 5040.0f);
    for (float factor : {1 / 720.0f, 1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1.0f}) p = fma(p, r, all(factor));
    return {(vec)((whole + 127) << 23), p * r};
}

// cap * tanh(x / cap): tanh(y) = -m / (2 + m) with m = exp(-2y) - 1, which does not cancel where logits are small
inline vec soft_cap(vec x, float cap) {
    vec m = exp_negative((x < 0.0f ? x : -x) * (2 / cap)).minus_1();
    vec y = cap * -m / (2.0f + m);
    return x < 0.0f ? -y : y;
}

// ------------------------------------------------------------------ threads

// A group of threads that run the same code and share its loops.
class Team {
  public:
    int size = 1;

    // f(0) ... f(n - 1), each by whichever thread is free; returns when all are done.
    template <class F> void share(long n, F f) {
        for (long i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) f(i);
        long epoch = this->epoch.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived.store(0, std::memory_order_relaxed);
            next.store(0, std::memory_order_relaxed);
            this->epoch.store(epoch + 1, std::memory_order_release);
            return;
        }
        for (long spins = 0; this->epoch.load(std::memory_order_acquire) == epoch; spins++)
            if (spins > 2000) std::this_thread::yield();  // somebody else needs the core
    }

  private:
    alignas(64) std::atomic<long> next{0};
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<long> epoch{0};
};

// ------------------------------------------------------------------ matrix products

enum Then { STORE, ADD, RELU2 };

template <class W> struct Matrix {
    const W* data;       // (N / PANEL, K, PANEL)
    const float* scale;  // (N,) for int8, else null
    long N, K;           // N: padded to a multiple of PANEL
};

// How many panels go with M rows: enough sums to hide the latency of adding, not more than there are registers.
constexpr int panels_for(int M) { return M == 1 ? 4 : M <= 3 ? 4 / PARTS : 2 / PARTS; }

// y[m][j] = sum over k of x[k][m] * w[k][j], for M rows and P panels; k runs from 0 up in one chain for each sum.
template <int M, int P, class W>
void tile(const float* x, const W* w, const float* scale, long K, float* y, long y_stride, Then then) {
    vec sums[M][P][PARTS] = {};
    for (long k = 0; k < K; k++) {
        vec column[P][PARTS];
        if (M > 1)  // with sums to do for several rows the hardware looks ahead too little
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) __builtin_prefetch((const char*)(w + (p * K + k) * PANEL) + AHEAD);
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
#pragma GCC unroll 8
            for (int i = 0; i < PARTS; i++) column[p][i] = load(w + (p * K + k) * PANEL + i * LANES);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            vec value = all(x[k * M + m]);
#pragma GCC unroll 8
            for (int p = 0; p < P; p++)
#pragma GCC unroll 8
                for (int i = 0; i < PARTS; i++) sums[m][p][i] = fma(value, column[p][i], sums[m][p][i]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++)
            for (int i = 0; i < PARTS; i++) {
                float* out = y + m * y_stride + p * PANEL + i * LANES;
                vec s = sums[m][p][i];
                if (scale) s *= load(scale + p * PANEL + i * LANES);
                if (then == ADD) s += load(out);
                if (then == RELU2) s = s < 0.0f ? vec{} : s * s;  // so that NaN stays NaN
                store(out, s);
            }
}

// Panels first ... end - 1 for M rows: several at a time, the rest one by one.
template <int M, class W>
void panels(const float* x, const Matrix<W>& w, long first, long end, float* y, long y_stride, Then then) {
    constexpr int P = panels_for(M);
    auto at = [&](long p) { return w.data + p * PANEL * w.K; };
    auto scale = [&](long p) { return w.scale ? w.scale + p * PANEL : nullptr; };
    long p = first;
    for (; p + P <= end; p += P) tile<M, P>(x, at(p), scale(p), w.K, y + p * PANEL, y_stride, then);
    for (; p < end; p++) tile<M, 1>(x, at(p), scale(p), w.K, y + p * PANEL, y_stride, then);
}

// y (n, N) = x (n, K) times the matrix, all of the team together. Rows of x and y are x_stride and y_stride apart;
// `room` holds n * K floats.
template <class W>
void multiply(Team& team, const Matrix<W>& w, const float* x, long x_stride, long n, float* y, long y_stride, Then then,
              float* room) {
    const long tiles = (n + TILE - 1) / TILE, count = w.N / PANEL, unit = count / UNIT >= team.size ? UNIT : 1;
    auto start = [&](long t) { return t * n / tiles; };  // rows are dealt out evenly: 16 are 5, 5 and 6
    if (n > 1) {  // rows that go together stand together for each k, so that the loop follows one pointer
        constexpr long PIECES = 4;
        team.share(tiles * PIECES, [&](long i) {
            const long m = start(i / PIECES), rows = start(i / PIECES + 1) - m, piece = i % PIECES;
            for (long k = w.K * piece / PIECES; k < w.K * (piece + 1) / PIECES; k++)
                for (long row = 0; row < rows; row++) room[m * w.K + k * rows + row] = x[(m + row) * x_stride + k];
        });
        x = room;
    }
    team.share((count + unit - 1) / unit, [&](long i) {
        const long first = i * unit, end = first + unit < count ? first + unit : count;
        for (long t = 0; t < tiles; t++) {
            const long m = start(t);
            const float* from = x + m * w.K;
            float* to = y + m * y_stride;
            switch (start(t + 1) - m) {
                case 1: panels<1>(from, w, first, end, to, y_stride, then); break;
                case 2: panels<2>(from, w, first, end, to, y_stride, then); break;
                case 3: panels<3>(from, w, first, end, to, y_stride, then); break;
                case 4: panels<4>(from, w, first, end, to, y_stride, then); break;
                case 5: panels<5>(from, w, first, end, to, y_stride, then); break;
                default: panels<6>(from, w, first, end, to, y_stride, then);
            }
        }
    });
}

// ------------------------------------------------------------------ the rest of a block

// y = x / rms(x); y may be x
void norm(const float* x, float* y, long n) {
    vec squares = {};
    long i = 0;
    for (; i + LANES <= n; i += LANES) squares = fma(load(x + i), load(x + i), squares);
    float total = sum(squares);
    for (; i < n; i++) total += x[i] * x[i];
    float factor = 1 / std::sqrt(total / n + 1.1920929e-7f);  // float32's epsilon, as torch's rms_norm takes it
    for (i = 0; i < n; i++) y[i] = x[i] * factor;
}

// Rotate the pairs (i, i + D/2) in place: (a cos + b sin, b cos - a sin)
void rotate(float* x, const float* cos, const float* sin, long D) {
    for (long i = 0; i < D / 2; i++) {
        float a = x[i], b = x[i + D / 2];
        x[i] = a * cos[i] + b * sin[i];
        x[i + D / 2] = b * cos[i] - a * sin[i];
    }
}

template <class C> float dot(const float* q, const C* k, long D) {
    vec s = {};
    long i = 0;
    for (; i + LANES <= D; i += LANES) s = fma(load(q + i), load(k + i), s);
    float total = sum(s);
    for (; i < D; i++) total += q[i] * number(k[i]);
    return total;
}

// y (D,) = softmax(q . keys / sqrt(D)) values, over `n` keys; `weights` has room for n + LANES
template <class C>
void attend(const float* q, const C* keys, const C* values, long n, long D, float* weights, float* y) {
    float largest = -INFINITY, root = 1 / std::sqrt(float(D));
    for (long t = 0; t < n; t++) {
        weights[t] = dot(q, keys + t * D, D) * root;
        largest = weights[t] > largest ? weights[t] : largest;
    }
    for (long t = n; t < n + LANES; t++) weights[t] = -INFINITY;  // taken for -87: e^-87 = 1e-38 changes no sum
    vec total = {};
    for (long t = 0; t < n; t += LANES) {
        vec e = exp_negative(load(weights + t) - largest).value();
        store(weights + t, e);
        total += e;
    }
    float inverse = 1 / sum(total);
    constexpr int WIDE = 8;  // vectors of values summed at a time
    long i = 0;
    for (; i + WIDE * LANES <= D; i += WIDE * LANES) {
        vec s[WIDE] = {};
        for (long t = 0; t < n; t++)
#pragma GCC unroll 8
            for (int j = 0; j < WIDE; j++) s[j] = fma(all(weights[t]), load(values + t * D + i + j * LANES), s[j]);
        for (int j = 0; j < WIDE; j++) store(y + i + j * LANES, s[j] * inverse);
    }
    for (; i + LANES <= D; i += LANES) {
        vec s = {};
        for (long t = 0; t < n; t++) s = fma(all(weights[t]), load(values + t * D + i), s);
        store(y + i, s * inverse);
    }
    for (; i < D; i++) {
        float s = 0;
        for (long t = 0; t < n; t++) s += weights[t] * number(values[t * D + i]);
        y[i] = s * inverse;
    }
}

}  // namespace

// ------------------------------------------------------------------ the model

extern "C" {

// Filled by cpu_forward.py; the order of the fields is the contract.
struct Request {
    int64_t layers, heads, kv_heads, head_dim, width, vocab;  // vocab: padded to a multiple of PANEL
    const void* const* weights;  // for each layer qkv, attention's projection, fc, the MLP's projection; then lm_head
    const float* const* scales;  // likewise; null but for int8
    const float* cos;            // (positions, head_dim / 2)
    const float* sin;
    void* cache;                 // [0 keys, 1 values][layer][row][kv head][position][head_dim]
    int64_t kv_stride, layer_stride, row_stride, head_stride;  // in elements
    int64_t tokens;
    const int32_t* rows;         // (tokens,) the cache's row of each
    const int32_t* positions;    // (tokens,) and its place there; a row's tokens come in order
    float* x;                    // (tokens, width) embeddings, overwritten
    int64_t wanted;              // how many tokens' logits are wanted,
    const int32_t* which;        // (wanted,) and of which
    float* logits;               // (wanted, vocab)
    float* scratch;              // see cpu_forward.py
    int64_t longest;             // keys of the longest row, this call's included
    int64_t threads;
    float cap;                   // logits are cap * tanh(x / cap)
};

}  // extern "C"

namespace {

template <class W, class C> void work(const Request& r, Team& team, float* weights_of_keys) {
    const long n = r.tokens, width = r.width, D = r.head_dim, heads = r.heads, kv_heads = r.kv_heads;
    const long groups = heads / kv_heads;
    auto padded = [](long N) { return (N + PANEL - 1) / PANEL * PANEL; };
    const long qkv_width = padded((heads + 2 * kv_heads) * D), wide = padded(4 * width), narrow = padded(width);
    float* x = r.x;                       // the residual stream (n, narrow)
    float* normed = r.scratch;            // (n, narrow); also what attention gives
    float* hidden = normed + n * narrow;  // (n, max(qkv_width, wide))
    float* room = hidden + n * (qkv_width > wide ? qkv_width : wide);  // (n, wide)
    auto matrix = [&](long i, long N, long K) { return Matrix<W>{(const W*)r.weights[i], r.scales[i], padded(N), K}; };

    team.share(n, [&](long t) { norm(x + t * narrow, x + t * narrow, width); });
    for (long layer = 0; layer < r.layers; layer++) {
        C* keys = (C*)r.cache + layer * r.layer_stride;
        C* values = keys + r.kv_stride;
        team.share(n, [&](long t) { norm(x + t * narrow, normed + t * narrow, width); });
        multiply(team, matrix(4 * layer, (heads + 2 * kv_heads) * D, width), normed, narrow, n, hidden, qkv_width,
                 STORE, room);
        team.share(n, [&](long t) {
            float* q = hidden + t * qkv_width;
            const long position = r.positions[t], at = r.rows[t] * r.row_stride + position * D;
            for (long h = 0; h < heads + kv_heads; h++) {  // queries, then keys
                rotate(q + h * D, r.cos + position * (D / 2), r.sin + position * (D / 2), D);
                norm(q + h * D, q + h * D, D);
            }
            for (long h = 0; h < kv_heads; h++)
                for (long i = 0; i < D; i++) {
                    put(keys + at + h * r.head_stride + i, q[(heads + h) * D + i]);
                    put(values + at + h * r.head_stride + i, q[(heads + kv_heads + h) * D + i]);
                }
        });
        team.share(n * heads, [&](long i) {
            const long t = i / heads, h = i % heads, at = r.rows[t] * r.row_stride + h / groups * r.head_stride;
            attend(hidden + t * qkv_width + h * D, keys + at, values + at, r.positions[t] + 1, D, weights_of_keys,
                   normed + t * narrow + h * D);
        });
        multiply(team, matrix(4 * layer + 1, width, heads * D), normed, narrow, n, x, narrow, ADD, room);
        team.share(n, [&](long t) { norm(x + t * narrow, normed + t * narrow, width); });
        multiply(team, matrix(4 * layer + 2, 4 * width, width), normed, narrow, n, hidden, wide, RELU2, room);
        multiply(team, matrix(4 * layer + 3, width, 4 * width), hidden, wide, n, x, narrow, ADD, room);
    }
    team.share(r.wanted, [&](long i) { norm(x + r.which[i] * narrow, normed + i * narrow, width); });
    multiply(team, matrix(4 * r.layers, r.vocab, width), normed, narrow, r.wanted, r.logits, r.vocab, STORE,
             room);
    constexpr long PIECE = 256 * PANEL;
    const long numbers = r.wanted * r.vocab;
    team.share((numbers + PIECE - 1) / PIECE, [&](long i) {
        const long end = (i + 1) * PIECE < numbers ? (i + 1) * PIECE : numbers;
        for (long j = i * PIECE; j < end; j += LANES) store(r.logits + j, soft_cap(load(r.logits + j), r.cap));
    });
}

template <class W, class C> void forward(const Request& r) {
    const long room = r.longest + 2 * LANES;
    std::vector<float> keys(r.threads * room);  // attention weights, a stretch for each thread
    Team team;
#ifdef _OPENMP  // PyTorch's own pool: threads of ours would wait for the core on which one of that pool still spins
#pragma omp parallel num_threads(r.threads)
    {
#pragma omp single
        team.size = omp_get_num_threads();  // may be fewer than were asked for
        work<W, C>(r, team, keys.data() + omp_get_thread_num() * room);
    }
#else
    team.size = r.threads;
    std::vector<std::thread> others;
    for (long i = 1; i < r.threads; i++) others.emplace_back([&, i] { work<W, C>(r, team, keys.data() + i * room); });
    work<W, C>(r, team, keys.data());
    for (auto& thread : others) thread.join();
#endif
}

}  // namespace

extern "C" {
void forward_float32(const Request* r) { forward<float, float>(*r); }
void forward_bfloat16(const Request* r) { forward<bf16, bf16>(*r); }
void forward_int8(const Request* r) { forward<int8_t, bf16>(*r); }
}
