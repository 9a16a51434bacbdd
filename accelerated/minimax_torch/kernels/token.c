// One token of one layer for B rows, on a CPU: every weight is read once, and hardly anything else is done.
//
// The functions are those of minimax_torch.layers, in their order, for T = 1. Threads share the rows of each matrix, and
// wait for each other where the next step needs all of the last one. Waiting is dear where other programs run, so what is
// small (norms, the router, the gate) every thread does for itself, and a thread that projects a head also remembers it.
// Numbers are float32; a matrix is float32, or int8 codes with a scale for each row, which are never written out wide.

#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef struct {
    const void *data;     // (m, n), float or int8_t
    const float *scales;  // (m), or none where the matrix is float
} Matrix;

typedef struct {
    int64_t D, H, G, d, R, E, K, F;  // as in the reference's shapes.py; R rotary channels, F the width of an expert
    int64_t postnorm, gelu;
    float eps, inner_eps, alpha, beta, mlp_alpha, mlp_beta;
    const float *norm1, *norm2, *inner, *keep;  // gains; exp(-slope) of each head
    const double *frequencies;                  // (R/2)
    Matrix qkv, gate, out, q, k, v;             // a softmax layer has the last three, and its o_proj in "out"
    const float *router;                        // (E, D)
    const Matrix *up, *down;                    // (E) matrices each: (2F, D) and (D, F)
} Layer;

// ---- Products -------------------------------------------------------------------------------------------------------

typedef float Floats __attribute__((vector_size(64)));  // 16 at a time, whatever the processor makes of it
typedef float LooseFloats __attribute__((vector_size(64), aligned(4)));
typedef int8_t LooseCodes __attribute__((vector_size(16), aligned(1)));

static float sum(Floats x) {
    float s[16];
    memcpy(s, &x, sizeof s);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) s[i] += s[i + half];
    return s[0];
}

static inline Floats wide(const int8_t *codes) {
#ifdef __AVX512F__  // which GCC does not find by itself
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)codes)));
#else
    float x[16];
    Floats y;
    for (int i = 0; i < 16; i++) x[i] = codes[i];
    memcpy(&y, x, sizeof y);
    return y;
#endif
}

// Four rows of a matrix, r[0] … r[3], times up to four vectors: y[k] = rows · x[k]. Sixteen sums keep the arithmetic busy,
// and the rows that come next are fetched meanwhile: left to itself a processor stops at the end of every page of 4 KB.
static inline __attribute__((always_inline)) void block(Matrix w, int codes, int64_t n, const int64_t r[4], int many,
                                                        const float *const x[4], float y[4][4], int fetch) {
    const int64_t size = codes ? 1 : 4, ahead = n * size > 8192 ? 4096 / size : 2 * n * (r[1] == r[0] + 1 ? 4 : 2);
    const float *row[4];
    const int8_t *code[4];
    Floats s[4][4] = {0};
    for (int q = 0; q < 4; q++) row[q] = (const float *)w.data + r[q] * n, code[q] = (const int8_t *)w.data + r[q] * n;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        Floats v[4];
        if (fetch && i * size % 64 == 0)
            for (int q = 0; q < 4; q++)
                __builtin_prefetch(codes ? (const void *)(code[q] + ahead + i) : (const void *)(row[q] + ahead + i));
        for (int k = 0; k < many; k++) v[k] = *(const LooseFloats *)(x[k] + i);
        for (int q = 0; q < 4; q++) {
            Floats u = codes ? wide(code[q] + i) : (Floats) * (const LooseFloats *)(row[q] + i);
            for (int k = 0; k < many; k++) s[q][k] += u * v[k];
        }
    }
    for (int k = 0; k < many; k++)
        for (int q = 0; q < 4; q++) {
            float t = sum(s[q][k]);
            for (int64_t c = i; c < n; c++) t += (codes ? (float)code[q][c] : row[q][c]) * x[k][c];
            y[k][q] = codes ? t * (w.scales[r[q]] / 127) : t;
        }
}

static void four(Matrix w, int64_t n, const int64_t r[4], int many, const float *const x[4], float y[4][4], int fetch) {
    switch (many + (w.scales ? 4 : 0)) {  // a case each, so that the sums stay in registers
        case 1: block(w, 0, n, r, 1, x, y, fetch); break;
        case 2: block(w, 0, n, r, 2, x, y, fetch); break;
        case 3: block(w, 0, n, r, 3, x, y, fetch); break;
        case 4: block(w, 0, n, r, 4, x, y, fetch); break;
        case 5: block(w, 1, n, r, 1, x, y, fetch); break;
        case 6: block(w, 1, n, r, 2, x, y, fetch); break;
        case 7: block(w, 1, n, r, 3, x, y, fetch); break;
        case 8: block(w, 1, n, r, 4, x, y, fetch); break;
    }
}

// Rows r … r + 3 times vectors b … b + 3 of x (B, n); past the last row of m, the last one again. How many vectors.
static int rows_at(Matrix w, int64_t m, int64_t n, int64_t r, const float *x, int64_t B, int64_t b, float y[4][4]) {
    int64_t rows[4];
    const float *at[4];
    int many = B - b < 4 ? B - b : 4;
    for (int i = 0; i < 4; i++) rows[i] = r + i < m ? r + i : m - 1, at[i] = x + (b + (i < many ? i : 0)) * n;
    four(w, n, rows, many, at, y, !b);
    return many;
}

// The next choices of expert e, from c on, up to four; returns where to go on.
static int64_t next_choices(const int64_t *chosen, int64_t all, int64_t e, int64_t c, int64_t found[4], int *many) {
    for (*many = 0; c < all && *many < 4; c++)
        if (chosen[c] == e) found[(*many)++] = c;
    return c;
}

static float dot(const float *a, const float *b, int64_t n) {
    Floats s = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) s += *(const LooseFloats *)(a + i) * *(const LooseFloats *)(b + i);
    float rest = sum(s);
    for (; i < n; i++) rest += a[i] * b[i];
    return rest;
}

// ---- Pointwise ------------------------------------------------------------------------------------------------------

static float sigmoid(float x) { return 1 / (1 + expf(-x)); }

static float activate(float x, int64_t gelu) {
    return gelu ? 0.5f * x * (1 + erff(x * 0.70710678f)) : x * sigmoid(x);
}

static void rms_norm(const float *x, const float *gain, float eps, int64_t n, float *y) {
    float scale = 1 / sqrtf(dot(x, x, n) / n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * gain[i];
}

// ---- Experts --------------------------------------------------------------------------------------------------------

// The K highest of E scores, the first among equals; their shares of the softmax.
static void route(const float *logits, int64_t E, int64_t K, int64_t *chosen, float *share) {
    float sum = 0;
    for (int64_t k = 0; k < K; k++) {
        int64_t best = -1;
        for (int64_t e = 0; e < E; e++) {
            int taken = 0;
            for (int64_t j = 0; j < k; j++) taken |= chosen[j] == e;
            if (!taken && (best < 0 || logits[e] > logits[best] || (isnan(logits[e]) && !isnan(logits[best])))) best = e;
        }
        chosen[k] = best;
        share[k] = expf(logits[best] - logits[chosen[0]]);
        sum += share[k];
    }
    for (int64_t k = 0; k < K; k++) share[k] /= sum;
}

// The part of n things that is the calling thread's.
static void my_part(int64_t n, int64_t *from, int64_t *to) {
    int64_t threads = omp_get_num_threads(), t = omp_get_thread_num();
    *from = n * t / threads, *to = n * (t + 1) / threads;
}

// Wait for all threads of the team. OpenMP's own barrier spins for milliseconds, which starves the very thread that is
// waited for where another program has taken its core; this one soon hands the core over.
static void meet(int *arrived, int *round) {
    int now = __atomic_load_n(round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(arrived, 1, __ATOMIC_ACQ_REL) == omp_get_num_threads()) {
        __atomic_store_n(arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(round, now + 1, __ATOMIC_RELEASE);
    } else {
        for (int spins = 0; __atomic_load_n(round, __ATOMIC_ACQUIRE) == now; spins++)
            if (spins > 4000) sched_yield();
    }
}

// ---- What the two kinds of layer share; every thread of a team calls these ------------------------------------------

typedef struct {
    float *qkv, *gate, *read, *hidden;    // shared: (B, 3Hd), (B, Hd), (B, Hd), (B, K, F)
    float *n1, *n2, *a, *logits, *share;  // each thread's own: (B, D), (B, D), (B, Hd), (B, E), (B, K)
    int64_t *chosen;                      // (B, K)
    int *arrived, *round;                 // of `meet`, shared
} Scratch;

int64_t shared_floats(const Layer *L) { return 5 * L->H * L->d + L->K * L->F; }

int64_t own_floats(const Layer *L) { return 2 * L->D + L->H * L->d + L->E + 4 * L->K; }

static Scratch cut(const Layer *L, int64_t B, float *at, int *meeting) {
    int64_t width = L->H * L->d;
    Scratch s = {.qkv = at, .gate = at + B * 3 * width, .read = at + B * 4 * width, .hidden = at + B * 5 * width};
    s.arrived = meeting, s.round = meeting + 1;
    at += B * shared_floats(L) + omp_get_thread_num() * B * own_floats(L);
    s.n1 = at, s.n2 = at + B * L->D, s.a = at + B * 2 * L->D;
    s.logits = s.a + B * width, s.share = s.logits + B * L->E, s.chosen = (int64_t *)(s.share + B * L->K);
    s.chosen = (int64_t *)(((uintptr_t)s.chosen + 7) & ~(uintptr_t)7);
    return s;
}

// x = α · (n1 or x) + β · W_o a: what both kinds of attention end with.
static void join(const Layer *L, int64_t B, const float *a, Scratch s, float *x) {
    int64_t D = L->D, width = L->H * L->d, from, to;
    my_part(D, &from, &to);
    for (int64_t r = from; r < to; r += 4)
        for (int64_t b = 0, many; b < B; b += many) {
            float y[4][4];
            many = rows_at(L->out, D, width, r, a, B, b, y);
            for (int64_t k = 0; k < many; k++)
                for (int64_t i = r, at = (b + k) * D; i < r + 4 && i < to; i++)
                    x[at + i] = L->alpha * (L->postnorm ? s.n1 : x)[at + i] + L->beta * y[k][i - r];
        }
    meet(s.arrived, s.round);
}

// x, the residual stream after attention, becomes the layer's output.
static void sparse_moe(const Layer *L, int64_t B, float *x, float *logits, Scratch s) {
    int64_t D = L->D, E = L->E, K = L->K, F = L->F, from, to;
    for (int64_t b = 0; b < B; b++) {
        rms_norm(x + b * D, L->norm2, L->eps, D, s.n2 + b * D);
        for (int64_t e = 0; e < E; e++) s.logits[b * E + e] = dot(L->router + e * D, s.n2 + b * D, D);
        route(s.logits + b * E, E, K, s.chosen + b * K, s.share + b * K);
    }
#pragma omp master
    memcpy(logits, s.logits, B * E * sizeof(float));
    // hidden[b, k] = act(gate) · up. Each thread takes its part of every expert, so that all have as much to read; what
    // it takes of one expert lies together, and is read once for all rows that chose it.
    my_part(F, &from, &to);
    for (int64_t e = 0; e < E; e++)
        for (int64_t r = from; r < to; r += 2)
            for (int64_t c = 0, start = 1, found[4]; c < B * K; start = 0) {
                int64_t next = r + 1 < to ? r + 1 : r, rows[4] = {r, F + r, next, F + next};
                const float *at[4];
                float y[4][4];
                int many;
                c = next_choices(s.chosen, B * K, e, c, found, &many);
                for (int k = 0; k < many; k++) at[k] = s.n2 + found[k] / K * D;
                if (many) four(L->up[e], D, rows, many, at, y, start);
                for (int k = 0; k < many; k++) {
                    s.hidden[found[k] * F + r] = activate(y[k][0], L->gelu) * y[k][1];
                    s.hidden[found[k] * F + next] = activate(y[k][2], L->gelu) * y[k][3];
                }
            }
    meet(s.arrived, s.round);
    my_part(D, &from, &to);
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = from; i < to; i++) x[b * D + i] = L->mlp_alpha * (L->postnorm ? s.n2 : x)[b * D + i];
    for (int64_t e = 0; e < E; e++)
        for (int64_t r = from; r < to; r += 4)
            for (int64_t c = 0, start = 1, found[4]; c < B * K; start = 0) {
                int64_t rows[4];
                const float *at[4];
                float y[4][4];
                int many;
                c = next_choices(s.chosen, B * K, e, c, found, &many);
                for (int i = 0; i < 4; i++) rows[i] = r + i < D ? r + i : D - 1;
                for (int k = 0; k < many; k++) at[k] = s.hidden + found[k] * F;
                if (many) four(L->down[e], F, rows, many, at, y, start);
                for (int k = 0; k < many; k++)
                    for (int64_t i = r; i < r + 4 && i < to; i++)
                        x[found[k] / K * D + i] += L->mlp_beta * s.share[found[k]] * y[k][i - r];
            }
}

// ---- The two kinds of layer: each reads x (B, D) and leaves its output there ----------------------------------------

void lightning_layer(const Layer *L, int64_t B, int threads, float *x, const float *before, float *after, float *logits,
                     float *scratch) {
    int64_t D = L->D, H = L->H, d = L->d, width = H * d;
    int meeting[2] = {0, 0};
#pragma omp parallel num_threads(threads)
    {
        Scratch s = cut(L, B, scratch, meeting);
        for (int64_t b = 0; b < B; b++) rms_norm(x + b * D, L->norm1, L->eps, D, s.n1 + b * D);
        int64_t first, last;
        my_part(H, &first, &last);
        for (int64_t r = first * 3 * d; r < last * 3 * d; r += 4)  // d is a multiple of 4
            for (int64_t b = 0, many; b < B; b += many) {
                float y[4][4];
                many = rows_at(L->qkv, 3 * width, D, r, s.n1, B, b, y);
                for (int64_t k = 0; k < many; k++)
                    for (int i = 0; i < 4; i++) s.qkv[(b + k) * 3 * width + r + i] = activate(y[k][i], L->gelu);
            }
        for (int64_t r = first * d; r < last * d; r += 4)
            for (int64_t b = 0, many; b < B; b += many) {
                float y[4][4];
                many = rows_at(L->gate, width, D, r, s.n1, B, b, y);
                for (int64_t k = 0; k < many; k++)
                    for (int i = 0; i < 4; i++) s.gate[(b + k) * width + r + i] = sigmoid(y[k][i]);
            }
        for (int64_t b = 0; b < B; b++)
            for (int64_t h = first; h < last; h++) {  // S ← e^(−s) S + k vᵀ, o = q S
                int64_t p = b * H + h;
                const float *q = s.qkv + p * 3 * d, *k = q + d, *v = k + d, *S = before ? before + p * d * d : 0;
                float *N = after + p * d * d, *o = s.read + p * d, keep = L->keep[h];
                memset(o, 0, d * sizeof(float));
                for (int64_t i = 0; i < d; i++)
#pragma omp simd
                    for (int64_t j = 0; j < d; j++) {
                        N[i * d + j] = (S ? keep * S[i * d + j] : 0) + k[i] * v[j];
                        o[j] += q[i] * N[i * d + j];
                    }
            }
        meet(s.arrived, s.round);
        for (int64_t b = 0; b < B; b++) {
            rms_norm(s.read + b * width, L->inner, L->inner_eps, width, s.a + b * width);
            for (int64_t i = 0; i < width; i++) s.a[b * width + i] *= s.gate[b * width + i];
        }
        join(L, B, s.a, s, x);
        sparse_moe(L, B, x, logits, s);
    }
}

static void turn(float *x, const double *frequencies, int64_t R, double position) {
    for (int64_t i = 0; i < R / 2; i++) {
        float c = cos(position * frequencies[i]), n = sin(position * frequencies[i]), a = x[i], b = x[i + R / 2];
        x[i] = a * c - b * n, x[i + R / 2] = b * c + a * n;
    }
}

// keys and values are (B, G, capacity, d); row b has seen[b] of them, this token's, which goes into slot[b], included.
void softmax_layer(const Layer *L, int64_t B, int threads, float *x, float *keys, float *values, int64_t capacity,
                   const int64_t *position, const int64_t *slot, const int64_t *seen, float *logits, float *scratch) {
    int64_t D = L->D, H = L->H, G = L->G, d = L->d, heads = H + 2 * G;
    int meeting[2] = {0, 0};
#pragma omp parallel num_threads(threads)
    {
        Scratch s = cut(L, B, scratch, meeting);
        for (int64_t b = 0; b < B; b++) rms_norm(x + b * D, L->norm1, L->eps, D, s.n1 + b * D);
        int64_t first, last;
        my_part(heads, &first, &last);  // H queries, G keys, G values
        for (int64_t h = first; h < last; h++) {
            Matrix w = h < H ? L->q : h < H + G ? L->k : L->v;
            int64_t g = h < H ? h : (h - H) % G;
            for (int64_t r = 0; r < d; r += 4)
                for (int64_t b = 0, many; b < B; b += many) {
                    float y[4][4];
                    many = rows_at(w, (h < H ? H : G) * d, D, g * d + r, s.n1, B, b, y);
                    for (int64_t k = 0; k < many; k++)
                        memcpy(s.qkv + ((b + k) * heads + h) * d + r, y[k], 4 * sizeof(float));
                }
            for (int64_t b = 0; b < B; b++) {
                float *head = s.qkv + (b * heads + h) * d, *held = (h < H + G ? keys : values);
                if (h < H + G) turn(head, L->frequencies, L->R, position[b]);
                if (h >= H) memcpy(held + ((b * G + g) * capacity + slot[b]) * d, head, d * sizeof(float));
            }
        }
        meet(s.arrived, s.round);
#pragma omp for schedule(dynamic) nowait
        for (int64_t p = 0; p < B * H; p++) {  // a running softmax: what was summed shrinks when a higher score comes
            int64_t b = p / H, h = p % H, start = (b * G + h / (H / G)) * capacity * d;
            const float *q = s.qkv + (b * heads + h) * d, *k = keys + start, *v = values + start;
            float *o = s.read + p * d, high = -INFINITY, sum = 0, scale = 1 / sqrtf(d);
            memset(o, 0, d * sizeof(float));
            for (int64_t j = 0; j < seen[b]; j += 16) {
                int64_t many = seen[b] - j < 16 ? seen[b] - j : 16;
                float score[16], higher = high;
                for (int64_t i = 0; i < many; i++) {
                    score[i] = scale * dot(q, k + (j + i) * d, d);
                    higher = score[i] > higher || isnan(score[i]) ? score[i] : higher;
                }
                if (higher != high) {
                    float shrink = expf(high - higher);
                    sum *= shrink, high = higher;
                    for (int64_t i = 0; i < d; i++) o[i] *= shrink;
                }
                for (int64_t i = 0; i < many; i++) {
                    float weight = expf(score[i] - high);
                    const float *value = v + (j + i) * d;
                    sum += weight;
#pragma omp simd
                    for (int64_t c = 0; c < d; c++) o[c] += weight * value[c];
                }
            }
            for (int64_t i = 0; i < d; i++) o[i] /= sum;
        }
        meet(s.arrived, s.round);
        join(L, B, s.read, s, x);
        sparse_moe(L, B, x, logits, s);
    }
}
