/* Lightning attention in C, one position at a time, judged by golden vectors: no Python shared.
 *
 *     minimax-twin golden vectors --op lightning_attention_recurrent
 *     cc -O2 -o lightning lightning.c -lm && ./lightning vectors/inputs.safetensors actual.safetensors
 *     minimax-twin crosscheck --golden vectors --against actual.safetensors
 *
 * A safetensors file is 8 bytes of header length, a JSON header, then the numbers.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { void *data; long n[4]; } Tensor; /* data is NULL where the file has no such tensor */

static char *header, *numbers;

static void *checked(void *p) {
    if (!p) { fprintf(stderr, "lightning: cannot read, write or allocate\n"); exit(2); }
    return p;
}

static void load(const char *path) {
    FILE *f = checked(fopen(path, "rb"));
    uint64_t length;
    if (fread(&length, 8, 1, f) != 1 || length > 1 << 24) checked(NULL);
    fseek(f, 0, SEEK_END);
    long rest = ftell(f) - 8 - (long)length;
    if (rest < 0) checked(NULL);
    fseek(f, 8, SEEK_SET);
    header = checked(calloc(length + 1, 1));
    numbers = checked(malloc(rest + 1));
    if (fread(header, 1, length, f) != length || fread(numbers, 1, rest, f) != (size_t)rest) checked(NULL);
    fclose(f);
}

static Tensor find(int c, const char *name) { /* "0.q":{"dtype":"F64","shape":[2,3,70,8],"data_offsets":[0,26880]} */
    char key[64];
    snprintf(key, sizeof key, "\"%d.%s\":{", c, name);
    Tensor t = {NULL, {1, 1, 1, 1}};
    char *at = strstr(header, key);
    if (!at) return t;
    char *shape = strstr(at, "\"shape\":[") + 9, *offsets = strstr(at, "\"data_offsets\":[") + 16;
    for (int i = 0; i < 4 && *shape != ']'; i++, shape += *shape == ',') t.n[i] = strtol(shape, &shape, 10);
    t.data = numbers + strtol(offsets, NULL, 10);
    return t;
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: lightning INPUTS ACTUAL\n"), 2;
    load(argv[1]);
    char json[1 << 16] = "{";
    size_t bytes = 0, used = 1;
    FILE *body = checked(tmpfile());
    for (int c = 0;; c++) {
        Tensor q = find(c, "q"), k = find(c, "k"), v = find(c, "v"), s = find(c, "slopes");
        Tensor start = find(c, "state"), mask = find(c, "mask");
        if (!q.data) break;
        long B = q.n[0], H = q.n[1], T = q.n[2], d = q.n[3], e = v.n[3];
        float *out = checked(calloc(B * H * T * e, sizeof *out));     /* (B, H, T, e) */
        float *state = checked(calloc(B * H * d * e, sizeof *state)); /* (B, H, d, e) */
        for (long bh = 0; bh < B * H; bh++) {
            float *S = state + bh * d * e, keep = expf(-(float)((double *)s.data)[bh % H]);
            for (long i = 0; start.data && i < d * e; i++) S[i] = ((double *)start.data)[bh * d * e + i];
            for (long t = 0; t < T; t++) {
                double *qt = (double *)q.data + (bh * T + t) * d, *kt = (double *)k.data + (bh * T + t) * d;
                double *vt = (double *)v.data + (bh * T + t) * e;
                float *o = out + (bh * T + t) * e;
                if (mask.data && !((char *)mask.data)[bh / H * T + t]) continue; /* padding: no decay, no write */
                for (long i = 0; i < d; i++)
                    for (long j = 0; j < e; j++) {
                        S[i * e + j] = keep * S[i * e + j] + (float)kt[i] * (float)vt[j]; /* decay, write */
                        o[j] += (float)qt[i] * S[i * e + j];                              /* read */
                    }
            }
        }
        size_t a = B * H * T * e * sizeof *out, b = B * H * d * e * sizeof *state;
        used += snprintf(json + used, sizeof json - used,
                         "%s\"%d.out\":{\"dtype\":\"F32\",\"shape\":[%ld,%ld,%ld,%ld],\"data_offsets\":[%zu,%zu]},"
                         "\"%d.state\":{\"dtype\":\"F32\",\"shape\":[%ld,%ld,%ld,%ld],\"data_offsets\":[%zu,%zu]}",
                         c ? "," : "", c, B, H, T, e, bytes, bytes + a, c, B, H, d, e, bytes + a, bytes + a + b);
        bytes += a + b;
        fwrite(out, 1, a, body), fwrite(state, 1, b, body), free(out), free(state);
    }
    FILE *f = checked(fopen(argv[2], "wb"));
    uint64_t length = strlen(strcat(json, "}"));
    fwrite(&length, 8, 1, f), fwrite(json, 1, length, f), rewind(body);
    for (int x; (x = fgetc(body)) != EOF;) fputc(x, f);
    return fclose(f) ? 2 : 0;
}
