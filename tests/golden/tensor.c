/* Lightning attention in float32, its inputs and outputs in one file for "Bring your tensor". C and C++ compile it. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { H = 2, T = 9, D = 4 };
typedef struct { const char *name, *shape; const float *data; long n; } Array;

static void save(const char *file, const Array *a, int count) {
    char header[4096] = "{";
    long end = 0;
    for (int i = 0; i < count; i++, end += 4 * a[i - 1].n)
        snprintf(header + strlen(header), 256, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[%ld,%ld]}",
                 i ? "," : "", a[i].name, a[i].shape, end, end + 4 * a[i].n);
    strcat(header, "}");
    uint64_t length = strlen(header);
    FILE *f = fopen(file, "wb");
    fwrite(&length, 8, 1, f);
    fwrite(header, 1, length, f);
    for (int i = 0; i < count; i++) fwrite(a[i].data, 4, a[i].n, f);
    fclose(f);
}

int main(int argc, char **argv) {
    static float q[H * T * D], k[H * T * D], v[H * T * D], out[H * T * D], S[H * D * D];
    float slopes[H] = {0.7f, 0.1f};
    for (int i = 0; i < H * T * D; i++) q[i] = sinf(i), k[i] = cosf(2 * i), v[i] = sinf(3 * i + 1);
    for (int h = 0; h < H; h++)
        for (int t = 0, at = h * T * D; t < T; t++, at += D)
            for (int i = 0; i < D; i++)
                for (int j = 0; j < D; j++) {
                    float *s = &S[(h * D + i) * D + j];
                    *s = expf(-slopes[h]) * *s + k[at + i] * v[at + j];
                    out[at + j] += q[at + i] * *s;
                }
    const char *x = "[1,2,9,4]";
    Array all[] = {{"q", x, q, H * T * D}, {"k", x, k, H * T * D}, {"v", x, v, H * T * D}, {"slopes", "[2]", slopes, H},
                   {"out", x, out, H * T * D}, {"new_state", "[1,2,4,4]", S, H * D * D}};
    save(argc > 1 ? argv[1] : "mine.safetensors", all, 6);
    return 0;
}
